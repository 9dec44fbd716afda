# safework in a container: what `make install` installs, and what CI tests.
#   docker build -t safework .                                # pip's own choice of torch
#   docker build -t safework --build-arg TORCH_INDEX=URL .    # torch of another index, such as one with CPU builds, which are smaller
#   docker build -t safework:gpu --build-arg VARIANT=gpu .    # with deepspeed; run it with --gpus all
#   docker run --rm -v "$PWD:/work" safework sft --help
# vLLM is not in it: it has an environment of its own (docs/cluster.md).
ARG VARIANT=cpu

FROM python:3.11-slim AS cpu
# a compiler: torch and deepspeed build small extensions when they are first used
RUN apt-get update && apt-get install -y --no-install-recommends build-essential git make && rm -rf /var/lib/apt/lists/*
WORKDIR /opt/safework
COPY . .
ARG TORCH_INDEX=
RUN python -m pip install --no-cache-dir --quiet --disable-pip-version-check -c constraints.txt ${TORCH_INDEX:+--index-url $TORCH_INDEX} torch
RUN python -m pip install --no-cache-dir --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'

FROM cpu AS gpu
RUN python -m pip install --no-cache-dir --quiet --disable-pip-version-check -c constraints.txt -e '.[deepspeed]'

FROM ${VARIANT}
RUN safework --version
WORKDIR /work
ENTRYPOINT ["safework"]
