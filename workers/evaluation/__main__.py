"""`python -m workers.evaluation`: see `run.py` (a spawned process cannot import from here)."""

from workers.evaluation.run import main

if __name__ == "__main__":
    main()
