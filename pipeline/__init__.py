"""The stages that turn a Qwen3-TTS checkpoint into an OpenVINO bundle; run as `python -m pipeline.<stage>`."""

import os

# OpenVINO's converter and NNCF report their use over the network, each event from a process of its own, which takes
# seconds. The pipeline reports to nobody; on build servers, which this variable tells, they do not either.
os.environ.setdefault("TF_BUILD", "True")
