# Serves the policy bundle, or the folder of bundles, that is mounted at /models, on port $PORT. Nothing of TensorFlow
# is inside. docs/howto/serve/deploy.md says more.
# Whoever reaches the port is answered, as long as no keys or client certificates are asked for: publish it with care, or
# set TRPO_TF_INSECURE=0, with which the server does not start without them. Options are given behind the image's name, or
# in the environment: -e TRPO_TF_KEYS=/run/secrets/keys.
#
#     docker build -t trpo-tf-serving .                       HTTP; with --build-arg EXTRA=grpc also gRPC
#     docker run --rm --read-only -p 8080:8080 -v ./bundle:/models:ro trpo-tf-serving

ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS builder
ARG EXTRA=serve
ARG VERSION=0.1.0
COPY requirements/${EXTRA}.txt /build/packages.txt
COPY requirements/sbom.txt /build/
RUN python3 -m venv /opt/venv && python3 -m venv /build/sbom \
 && install="-m pip install --quiet --no-cache-dir --require-hashes --only-binary :all: --requirement" \
 && /opt/venv/bin/python $install /build/packages.txt --no-compile \
 && /build/sbom/bin/python $install /build/sbom.txt
COPY deploy/image /build/
RUN sh /build/slim.sh ${EXTRA} \
 && /build/sbom/bin/cyclonedx-py environment --output-reproducible /opt/venv/bin/python > /build/packages.json \
 && /build/sbom/bin/python /build/sbom.py ${VERSION} < /build/packages.json > /opt/sbom.cdx.json
COPY trpo_tf/__init__.py trpo_tf/__main__.py trpo_tf/lazy_attributes.py /app/trpo_tf/
COPY serving /app/trpo_tf/serving
ENV PYTHONPATH=/app PYTHONPYCACHEPREFIX=/opt/bytecode
RUN /opt/venv/bin/python /build/bytecode.py

# What trains, alone or on a Ray cluster: docker build --target train -t trpo-tf-train . (docs/howto/train/cluster.md)
FROM ${BASE_IMAGE} AS train
COPY requirements/ray.txt /build/packages.txt
RUN python3 -m venv /opt/venv \
 && /opt/venv/bin/python -m pip install --quiet --no-cache-dir --require-hashes --only-binary :all: --requirement /build/packages.txt \
 && printf '#!/bin/sh\nexec /opt/venv/bin/python -m trpo_tf "$@"\n' > /usr/local/bin/trpo-tf && chmod 755 /usr/local/bin/trpo-tf \
 && useradd --create-home --uid 10001 trpo-tf && install -d -o trpo-tf /runs
COPY trpo_tf /app/trpo_tf
COPY export /app/export
COPY serving /app/serving
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_USAGE_STATS_REPORT_URL=http://127.0.0.1:9 \
    ORT_DISABLE_TELEMETRY=1 \
    MUJOCO_GL=egl
WORKDIR /home/trpo-tf
USER 10001:10001
CMD ["trpo-tf", "train", "--help"]

# The same base, so that the environment finds its Python where it was made.
FROM ${BASE_IMAGE}
ARG BASE_IMAGE
ARG VERSION=0.1.0
LABEL org.opencontainers.image.title="trpo-tf-serving" \
      org.opencontainers.image.description="Serves a policy over the Open Inference Protocol with ONNX Runtime on the CPU" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}"
# Nothing that installs: the base's own pip.
RUN rm -rf /usr/local/lib/python3.*/site-packages/* /usr/local/lib/python3.*/ensurepip /usr/local/bin/pip* \
    /usr/local/bin/wheel /usr/lib/python3/dist-packages/* /usr/lib/python3.*/ensurepip /usr/share/python-wheels /usr/bin/pip*
COPY --from=builder /opt/venv /opt/venv
COPY --from=builder /opt/sbom.cdx.json /opt/sbom.cdx.json
COPY --from=builder /app /app
COPY --from=builder /opt/bytecode /opt/bytecode
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    PYTHONPYCACHEPREFIX=/opt/bytecode \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    OPENBLAS_NUM_THREADS=1 \
    ORT_DISABLE_TELEMETRY=1 \
    PORT=8080 \
    TRPO_TF_HOST=0.0.0.0 \
    TRPO_TF_INSECURE=1
WORKDIR /app
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
    CMD ["python", "/app/trpo_tf/serving/healthcheck.py"]
ENTRYPOINT ["trpo-tf", "serve", "/models"]
