# The front door: SpeechService, the chain behind it, and the `csm` command. No model, no torch.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG STORE=s3
WORKDIR /src
# Dependencies first: a change of code leaves this layer alone.
# pip's own configuration says where packages come from; it stays out of the image.
COPY pyproject.toml constraints.txt ./
COPY gateway/client/pyproject.toml gateway/client/
COPY deploy/images/requirements.py deploy/images/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/venv \
    && python3 deploy/images/requirements.py "gateway,http,$STORE" > requirements.txt \
    && /opt/venv/bin/pip install -c constraints.txt -r requirements.txt
COPY protos/csm /opt/csm/csm
COPY services/__init__.py /opt/csm/services/
COPY services/runtime /opt/csm/services/runtime
COPY gateway /opt/csm/gateway
COPY gateway/client/csm_client /opt/csm/csm_client
COPY models/*.py /opt/csm/models/
COPY models/csm-1b/bundle.toml /opt/csm/models/csm-1b/
COPY deploy/images/sitecustomize.py /opt/csm/
RUN /opt/venv/bin/python -m compileall -q /opt/csm \
    && printf '#!/bin/sh\nexec python -m gateway.cli "$@"\n' > /opt/venv/bin/csm \
    && chmod 755 /opt/venv/bin/csm

FROM ${BASE}
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/csm /opt/csm
# The root file system is read-only: what libraries must write goes to /tmp.
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/csm PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    HOME=/tmp
WORKDIR /opt/csm
USER 10001:10001
ENTRYPOINT ["python", "-m", "gateway"]
