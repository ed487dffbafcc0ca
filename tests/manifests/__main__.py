"""`make manifests`: render every overlay of k8s/ and validate all that can be without a cluster; exit 1 on a fault.

Not seen from here: what only an API server or an operator decides (CEL rules, webhooks, quotas, scheduling).
"""

from __future__ import annotations

import sys

from tests.manifests.hardening import hardening_faults
from tests.manifests.kinds import kind_faults
from tests.manifests.monitoring import monitoring_faults
from tests.manifests.references import reference_faults
from tests.manifests.rendering import K8S, OVERLAYS, Object, of_kind, render
from tests.manifests.serve_config import serve_faults

__all__ = ["faults_of"]


def faults_of(objects: list[Object]) -> list[str]:
    """Say everything that is wrong with an overlay; what is misshapen is not looked into further."""
    if misshapen := [fault for one in objects for fault in kind_faults(one)]:
        return misshapen
    if unserved := [fault for one in of_kind(objects, "RayService") for fault in serve_faults(one)]:
        return unserved
    return [*reference_faults(objects), *hardening_faults(objects), *monitoring_faults(objects)]


def main() -> int:
    """Validate every overlay; the number of faults."""
    num_faults = 0
    for overlay in OVERLAYS:
        try:
            objects = render(K8S / "overlays" / overlay)
        except (FileNotFoundError, ValueError) as error:
            faults, what = [str(error)], "it"
        else:
            faults, what = faults_of(objects), f"{len(objects)} objects"
        print(f"{overlay}: {what} with {len(faults)} faults" if faults else f"{overlay}: {what}, no fault")
        for fault in faults:
            print(f"  {fault}")
        num_faults += len(faults)
    return num_faults


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
