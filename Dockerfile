# syntax=docker/dockerfile:1
# Targets: `api` (no torch) and `worker` (torch with CUDA, as PyPI has it).
#   docker build --target api -t stiefel-api .
#   docker build --target worker -t stiefel-worker .
# A CPU worker is gigabytes smaller with --build-arg TORCH_INDEX=<the PyTorch project's CPU index>.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONSAFEPATH=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN useradd --create-home --uid 10001 stiefel && mkdir /data && chown stiefel /data
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY core core
COPY jobs jobs
COPY api api
COPY worker worker
COPY client client
ENV STIEFEL_DATA_DIR=/data

FROM base AS api
RUN pip install -c constraints.txt '.[api]'
USER stiefel
EXPOSE 8765
HEALTHCHECK --interval=10s --timeout=3s CMD ["python", "-c", \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8765/healthz', timeout=2)"]
CMD ["python", "-m", "stiefel_api"]

FROM base AS worker
ARG TORCH_INDEX=
RUN pip install ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} torch==2.13.0 \
    && pip install -c constraints.txt '.[train]'
# Compile the CPU kernels into the image: jobs may read them beside the code, not write them there.
RUN python -c "import torch; from stiefel.unitary import step_; [step_(torch.eye(64, dtype=d), \
    torch.full((64, k), 1e-3, dtype=d), torch.ones(64, k, dtype=d), columns=range(2)) \
    for d in (torch.float32, torch.complex64) for k in (1, 2)]"
USER stiefel
# SIGTERM drains: running jobs checkpoint and go back to the queue.
STOPSIGNAL SIGTERM
CMD ["python", "-m", "stiefel_worker"]
