"""The multimodal judge of a server: the operator says which endpoint and model, jobs name it like any reward."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from service.jobs.capabilities import AbsentFacts, RewardFacts

if TYPE_CHECKING:
    from reward_models.multimodal import Answers, MultimodalJudge
    from reward_models.multimodal_formats import AnswerFormat
    from service.settings import Settings

__all__ = ["JUDGE", "absent_judge", "judge_facts", "load_judge"]

JUDGE = "multimodal"
"""By this name a job has it in `judge`, `override`, `referee` or `rewards`."""
KEY_VARIABLE = "DREAMSERVE_JUDGE_KEY"
LICENSE = "NOASSERTION"
"""What an endpoint's model may be used for, nobody tells us."""
TIMEOUT_S, GIVE_UP_S = 20.0, 35.0
"""Of one request, and of the last try: together below the minute after which an optimization counts as stalled."""


def judge_facts(settings: Settings) -> RewardFacts:
    """Say what is known of the judge that the settings name, without asking it."""
    return RewardFacts(
        license=LICENSE,
        commercial_ok=False,
        about=f"{settings.judge_model} at the operator's endpoint, asked in the form '{settings.judge_format}'",
        details={"uses_prompt": True, "views": None},
    )


def absent_judge() -> AbsentFacts:
    """Say what a server without a judge needs."""
    return AbsentFacts(
        license=LICENSE,
        commercial_ok=False,
        missing=(
            "an OpenAI-compatible endpoint of a model that sees pictures (such as vLLM with Qwen2.5-VL)",
        ),
        how="The operator sets DREAMSERVE_JUDGE_URL and DREAMSERVE_JUDGE_MODEL where the workers run.",
    )


def load_judge(settings: Settings) -> tuple[MultimodalJudge, MultimodalJudge]:
    """Get ready to ask the endpoint; nothing is sent yet. Raises ValueError for an address that is none.

    The first judge raises when it cannot read an answer. The second, for DreamDPO's `override`, says NaN then, which
    counts as undecided; they remember their answers together.
    """
    from reward_models.multimodal import Answers, MultimodalJudge
    from reward_models.multimodal_endpoint import Endpoint, EndpointOptions

    assert settings.judge_url is not None, "a judge has an address"
    endpoint = Endpoint(
        settings.judge_url,
        settings.judge_model,
        key_variable=KEY_VARIABLE if os.environ.get(KEY_VARIABLE) else None,
        options=EndpointOptions(timeout_s=TIMEOUT_S, give_up_s=GIVE_UP_S),
    )
    answers = Answers(endpoint)
    form = _format(settings.judge_format, answers)
    strict = MultimodalJudge(JUDGE, form, answers, license=LICENSE)
    return strict, MultimodalJudge(JUDGE, form, answers, license=LICENSE, unparsed="nan")


def _format(name: str, answers: Answers) -> AnswerFormat:
    from reward_models.multimodal import WrittenQuestions
    from reward_models.multimodal_formats import Checklist
    from reward_models.multimodal_presets import FORMATS

    return Checklist(WrittenQuestions(answers)) if name == "checklist" else FORMATS[name]
