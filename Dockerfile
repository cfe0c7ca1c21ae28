# Serves the policy bundle, or the folder of bundles, that is mounted at /models, on port $PORT. Nothing of TensorFlow is inside.
# Whoever reaches the port is answered, as long as no --keys or --tls-client-ca is given: publish it with care.
#
#     docker build -t trpo-tf-serving .
#     docker run --rm --read-only -p 8080:8080 -v ./bundle:/models:ro trpo-tf-serving

ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS builder
COPY requirements/serve.txt /build/serve.txt
RUN python3 -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r /build/serve.txt \
 && /opt/venv/bin/pip uninstall --yes --quiet pip setuptools
COPY serving /app/serving
RUN /opt/venv/bin/python -m compileall -q /app

# The same base, so that the environment finds its Python where it was made.
FROM ${BASE_IMAGE}
COPY --from=builder /opt/venv /opt/venv
COPY --from=builder /app /app
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    OPENBLAS_NUM_THREADS=1 \
    ORT_DISABLE_TELEMETRY=1 \
    PORT=8080
WORKDIR /app
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
    CMD ["python", "/app/serving/healthcheck.py"]
ENTRYPOINT ["python", "-m", "serving", "/models", "--host", "0.0.0.0", "--insecure"]
