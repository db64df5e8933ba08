# Prompts to frames of codes: the generator.
# Weights are not in here: they are mounted (see weights.Dockerfile).
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
# Dependencies first: a change of code leaves this layer alone.
# pip's own configuration says where packages come from; it stays out of the image.
COPY pyproject.toml constraints.txt requirements-nodeps.txt ./
COPY gateway/client/pyproject.toml gateway/client/
COPY deploy/images/requirements.py deploy/images/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/venv \
    && python3 deploy/images/requirements.py backbone > requirements.txt \
    && /opt/venv/bin/pip install -c constraints.txt -r requirements.txt
COPY protos/csm /opt/csm/csm
COPY services/__init__.py /opt/csm/services/
COPY services/runtime /opt/csm/services/runtime
COPY services/engine /opt/csm/services/engine
COPY services/backbone /opt/csm/services/backbone
COPY models/*.py /opt/csm/models/
COPY models/csm-1b/bundle.toml /opt/csm/models/csm-1b/
COPY deploy/images/sitecustomize.py /opt/csm/
RUN /opt/venv/bin/python -m compileall -q /opt/csm

FROM ${BASE}
# On a GPU, Triton builds a small launcher in C at its first run. COMPILER="" leaves the compiler out,
# for images that will only see a CPU; a base with Debian's own Python wants python3-dev too.
ARG COMPILER="gcc libc6-dev"
# The base image decides which release of Debian, and so which compiler.
# hadolint ignore=DL3008
RUN if [ -n "${COMPILER}" ]; then \
        apt-get update \
        && apt-get install -y --no-install-recommends ${COMPILER} \
        && rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/csm /opt/csm
# The root file system is read-only: what libraries must write goes to /tmp.
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/csm PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    HOME=/tmp TRITON_CACHE_DIR=/tmp/triton
WORKDIR /opt/csm
USER 10001:10001
ENTRYPOINT ["python", "-m", "services.backbone"]
