# Text to token ids, context audio to codes.
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
    && python3 deploy/images/requirements.py tokenizer > requirements.txt \
    && /opt/venv/bin/pip install -c constraints.txt -r requirements.txt \
    && grep '^moshi==' requirements-nodeps.txt > nodeps.txt \
    && /opt/venv/bin/pip install --no-deps -r nodeps.txt
COPY protos/csm /opt/csm/csm
COPY services/__init__.py /opt/csm/services/
COPY services/runtime /opt/csm/services/runtime
COPY services/engine /opt/csm/services/engine
COPY services/tokenizer /opt/csm/services/tokenizer
COPY models/*.py /opt/csm/models/
COPY models/csm-1b/bundle.toml /opt/csm/models/csm-1b/
COPY deploy/images/sitecustomize.py /opt/csm/
RUN /opt/venv/bin/python -m compileall -q /opt/csm

FROM ${BASE}
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/csm /opt/csm
# The root file system is read-only: what libraries must write goes to /tmp.
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/csm PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    HOME=/tmp
WORKDIR /opt/csm
USER 10001:10001
ENTRYPOINT ["python", "-m", "services.tokenizer"]
