# CPU by default. For an NVIDIA GPU, with the NVIDIA container toolkit on the host:
#   docker build -t wsi-saliency --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 .
#   docker run --rm --gpus all -u "$(id -u)" -v "$PWD:/data" wsi-saliency run slide.svs --model demo
# torch from the package index brings its own CUDA libraries; the base has to bring the driver's interface only.
ARG BASE=ubuntu:24.04

FROM ${BASE} AS build
ENV DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/venv
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY wsi_saliency ./wsi_saliency
RUN /opt/venv/bin/pip install .

FROM ${BASE}
ENV DEBIAN_FRONTEND=noninteractive
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 saliency \
    && mkdir -p /data && chown saliency /data
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    HF_HOME=/data/.cache/huggingface \
    MPLCONFIGDIR=/tmp/matplotlib
USER saliency
WORKDIR /data
ENTRYPOINT ["wsi-saliency"]
CMD ["--help"]
