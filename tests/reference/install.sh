#!/usr/bin/env bash
# Installs the official implementation in a virtual environment of its own: its pins clash with this project's.
#   bash tests/reference/install.sh VENV
set -euo pipefail
venv=${1:?usage: install.sh VENV}
python=$venv/bin/python
if [ -x "$python" ] && "$python" -c 'import qwen_tts' >/dev/null 2>&1; then exit 0; fi
"${PYTHON:-python3}" -m venv "$venv"
"$python" -m pip install -q torch==2.13.0 transformers==4.57.3 accelerate==1.12.0 librosa==0.11.0 soxr==1.1.0 \
  soundfile einops onnxruntime
"$python" -m pip install -q --no-deps qwen-tts==0.1.1 sox
# Only the 25 Hz tokenizer, which is not used here, imports torchaudio, and there is none for this torch.
compliance=$("$python" -c 'import site; print(site.getsitepackages()[0])')/torchaudio/compliance
mkdir -p "$compliance"
touch "$compliance/../__init__.py" "$compliance/__init__.py" "$compliance/kaldi.py"
"$python" -c 'import qwen_tts' >/dev/null
