# qa-train for machines with NVIDIA GPUs, with the pinned packages.
#
#   docker build -t qa-train .
#   docker run --gpus all --shm-size=8g -v $PWD/runs:/runs qa-train doctor
#   docker run --gpus all --shm-size=8g -v $PWD/runs:/runs --entrypoint torchrun qa-train \
#       --nproc-per-node 8 -m qa_train sft experiment=sft_7b run.dir=/runs/sft_7b
#
# torch's Linux wheels bring their own CUDA libraries: the host needs a driver and its container toolkit only.
# For another build of torch: --build-arg TORCH_INDEX_URL=<the index that torch's installation page names>
FROM python:3.11-slim

ARG TORCH_INDEX_URL=""
# Triton compiles its launchers against Python.h: DPO, Liger's kernels and compiled layers. The image has the header.
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

WORKDIR /qa-train
# The packages change less often than the code: they are a layer of their own.
COPY constraints.txt ./
RUN pip install -c constraints.txt torch ${TORCH_INDEX_URL:+--index-url "$TORCH_INDEX_URL"}
COPY pyproject.toml README.md LICENSE ./
COPY qa_train ./qa_train
COPY data_pipelines ./data_pipelines
COPY configs ./configs
RUN pip install -c constraints.txt ".[deepspeed,tracking,lora,cloud]" && qa-train --version \
    && python -c "from qa_train.utils.process import missing_compiler as m; exit(m())"

# Nothing is written into the image: a run lives where run.dir says, best on a mounted folder.
WORKDIR /
ENTRYPOINT ["qa-train"]
CMD ["--help"]
