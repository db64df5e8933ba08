# Fills the volume that the services mount read-only: run once, by a Job.
# The only image with weights inside, those of the bundle that ships (51 MB); other bundles are
# downloaded at the revisions their bundle.toml names.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS build
ARG STORE=s3
WORKDIR /src
COPY pyproject.toml constraints.txt ./
COPY gateway/client/pyproject.toml gateway/client/
COPY deploy/images/requirements.py deploy/images/
RUN --mount=type=secret,id=pip,target=/etc/pip.conf \
    --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/venv \
    && python3 deploy/images/requirements.py "models,$STORE" > requirements.txt \
    && /opt/venv/bin/pip install -c constraints.txt -r requirements.txt
COPY models/*.py /opt/csm/models/
COPY models/csm-1b/bundle.toml /opt/csm/models/csm-1b/
COPY models/embedded/bundle.toml models/embedded/tokenizer.json /opt/csm/models/embedded/
COPY models/embedded/generator /opt/csm/models/embedded/generator
COPY models/embedded/mimi /opt/csm/models/embedded/mimi
COPY models/embedded/watermark /opt/csm/models/embedded/watermark
COPY deploy/images/sitecustomize.py /opt/csm/
RUN /opt/venv/bin/python -m compileall -q /opt/csm

FROM ${BASE}
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/csm /opt/csm
ENV PATH=/opt/venv/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/csm PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    HOME=/tmp
WORKDIR /opt/csm
USER 10001:10001
ENTRYPOINT ["python", "-m", "models.fetch"]
