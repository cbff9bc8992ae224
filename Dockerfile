# syntax=docker/dockerfile:1
#   docker build -t hyperrl .                                  CPU
#   docker build -t hyperrl:cuda --build-arg VARIANT=cuda .    NVIDIA GPU: the host needs its driver and container toolkit
#   docker run --rm -v "$PWD/runs:/home/hyperrl/runs" hyperrl fit --config experiment/quickstart
#   (add --gpus all for CUDA; build with --build-arg UID=$(id -u) so that the container may write into the mounted folder)
ARG PYTHON_VERSION=3.11
ARG VARIANT=cpu

# VARIANT chooses one of the next two stages. The wheel from pip's default index brings its own CUDA libraries.
FROM python:${PYTHON_VERSION}-slim-bookworm AS torch-cpu
ENV TORCH_INDEX=https://download.pytorch.org/whl/cpu

FROM python:${PYTHON_VERSION}-slim-bookworm AS torch-cuda
ENV TORCH_INDEX=

FROM torch-${VARIANT} AS builder
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY constraints.txt ./
RUN python -m venv /opt/hyperrl && /opt/hyperrl/bin/pip install --upgrade pip
# torch first, as in the Makefile; everything else, its own dependencies too, follows pinned.
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/hyperrl/bin/pip install --no-deps ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY hyperrl ./hyperrl
COPY configs ./configs
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/hyperrl/bin/pip wheel --no-deps --wheel-dir /dist . && \
    /opt/hyperrl/bin/pip install -c constraints.txt "$(echo /dist/*.whl)[metaworld,sweep,video]" && \
    /opt/hyperrl/bin/pip check

FROM python:${PYTHON_VERSION}-slim-bookworm
ARG UID=1000
# The C kernels need an OpenMP library where torch does not bring its own under that name; pictures of robots need EGL.
RUN apt-get update && apt-get install -y --no-install-recommends libgomp1 libegl1 && rm -rf /var/lib/apt/lists/*
RUN useradd --create-home --uid "$UID" hyperrl && install -d -o hyperrl -g hyperrl /home/hyperrl/runs
COPY --from=builder /opt/hyperrl /opt/hyperrl
# The image holds no git; without this MLflow complains about it.
ENV PATH=/opt/hyperrl/bin:$PATH GIT_PYTHON_REFRESH=quiet PYTHONUNBUFFERED=1
USER hyperrl
WORKDIR /home/hyperrl
ENTRYPOINT ["hyperrl"]
CMD ["--help"]
