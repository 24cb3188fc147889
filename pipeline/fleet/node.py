"""node: makes this machine a node of a fleet.

    python -m pipeline.fleet.node                           the first machine; prints the address for the others
    python -m pipeline.fleet.node address=192.0.2.1:6379    every other machine

Ray asks every connection for the token in ~/.ray/auth_token (or RAY_AUTH_TOKEN), which the first machine makes and all
others need. The token lets its holder run programs on all of them.
"""

import os
import subprocess
import sys
from json import dumps
from pathlib import Path

from omegaconf import DictConfig

from pipeline.fleet.resources import offers
from pipeline.stage import PipelineError, main


def run(cfg: DictConfig) -> None:
    """Becomes `ray start`, which stays until it is stopped. Raises PipelineError where the token is missing."""
    program = Path(sys.executable).with_name("ray")
    if not program.exists():
        raise PipelineError("Ray is not installed; pip install -c constraints.txt -e '.[fleet]'")
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", Path.home() / ".ray/auth_token"))
    if "RAY_AUTH_TOKEN" not in os.environ and not token.exists():
        if cfg.address:
            raise PipelineError(f"{token} is missing; copy it from the first machine over a secure channel")
        subprocess.run([program, "get-auth-token", "--generate"], check=True, stdout=subprocess.DEVNULL)
    place = [f"--address={cfg.address}"] if cfg.address else ["--head", "--port=6379", "--include-dashboard=false"]
    os.execv(program, ["ray", "start", *place, f"--resources={dumps(offers())}", "--block"])


if __name__ == "__main__":
    main(run)
