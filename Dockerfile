# syntax=docker/dockerfile:1
# The processor and the message dumper. .dockerignore leaves out the local stack and its sample model. No compiler,
# no pip, no shell needed at run time; runs as nobody on a read-only root.
#   docker build -t tokenweir .
#   docker run --read-only --cap-drop ALL -p 50051:50051 -p 9464:9464 -v "$PWD/tls:/tls:ro" \
#     -e TOKENWEIR_SERVER__TLS__CERTIFICATE_FILE=/tls/tls.crt -e TOKENWEIR_SERVER__TLS__KEY_FILE=/tls/tls.key \
#     -e TOKENWEIR_SERVER__TLS__CLIENT_CA_FILE=/tls/ca.crt -e TOKENWEIR_SERVER__TLS__ALLOWED_SANS='[envoy.example]' \
#     -e TOKENWEIR_REDIS__URL=... -e TOKENWEIR_MONGO__URL=... tokenweir
# Without TLS it starts only with TOKENWEIR_SERVER__ALLOW_PLAINTEXT=true: behind a sidecar, or for a trial.

FROM python:3.12-slim AS build
WORKDIR /src
RUN python -m venv /opt/tokenweir
COPY requirements.lock pyproject.toml README.md LICENSE ./
COPY extproc ./extproc
COPY charts ./charts
RUN /opt/tokenweir/bin/pip install --no-cache-dir --no-compile -c requirements.lock '.[dumper]' \
 && /opt/tokenweir/bin/python -m compileall -q -j 0 /opt/tokenweir/lib

FROM python:3.12-slim
COPY --from=build /opt/tokenweir /opt/tokenweir
# No secret here: the rule takes the "TOKEN" in the product's name for one.
# hadolint ignore=DL3064
ENV PATH=/opt/tokenweir/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TOKENWEIR_SERVER__ADDRESS=0.0.0.0:50051 \
    TOKENWEIR_METRICS__ADDRESS=0.0.0.0:9464
USER 65532:65532
EXPOSE 50051 9464
STOPSIGNAL SIGTERM
ENTRYPOINT ["tokenweir"]
CMD ["serve"]
