from __future__ import annotations

import pytest


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning"
)  # Ray's own use of pydantic
def test_a_serve_configuration_cannot_hand_arguments_to_the_frontend() -> None:
    from service.http.app import build_from_environment

    assert build_from_environment({})
    with pytest.raises(ValueError, match="gives database_url; set DREAMSERVE_"):
        build_from_environment({"database_url": "postgresql://user:secret@host/db"})
