# syntax=docker/dockerfile:1
# The processor and the message dumper. .dockerignore leaves out the local stack and its sample model. No compiler,
# no pip, no shell needed at run time; runs as nobody on a read-only root.
#   docker build -t tokenweir .
#   docker run --read-only --cap-drop ALL -p 50051:50051 -p 9464:9464 -v "$PWD/tls:/tls:ro" \
#     -e TOKENWEIR_SERVER__TLS__CERTIFICATE_FILE=/tls/tls.crt -e TOKENWEIR_SERVER__TLS__KEY_FILE=/tls/tls.key \
#     -e TOKENWEIR_SERVER__TLS__CLIENT_CA_FILE=/tls/ca.crt -e TOKENWEIR_SERVER__TLS__ALLOWED_SANS='[envoy.example]' \
#     -e TOKENWEIR_REDIS__URL=... -e TOKENWEIR_MONGO__URL=... tokenweir
# Without TLS it starts only with TOKENWEIR_SERVER__ALLOW_PLAINTEXT=true: behind a sidecar, or for a trial.

# The digest makes each build the same. To renew it: docker buildx imagetools inspect python:3.12-slim
FROM python:3.12-slim@sha256:78387bc3881b8273120a12ebe6c1ab22b018ccc2c9adf565ae1ac9b536e184ea AS build
WORKDIR /src
RUN python -m venv /opt/tokenweir && python -m venv /opt/build
COPY requirements ./requirements
RUN /opt/build/bin/pip install --no-cache-dir --require-hashes -r requirements/build.lock \
 && /opt/tokenweir/bin/pip install --no-cache-dir --no-compile --require-hashes -r requirements/image.lock
COPY pyproject.toml README.md LICENSE ./
COPY extproc ./extproc
COPY charts ./charts
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
 && /opt/tokenweir/bin/pip install --no-cache-dir --no-compile --no-deps --no-index /wheels/*.whl \
 && /opt/tokenweir/bin/python -m compileall -q -j 0 /opt/tokenweir/lib

FROM python:3.12-slim@sha256:78387bc3881b8273120a12ebe6c1ab22b018ccc2c9adf565ae1ac9b536e184ea
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
