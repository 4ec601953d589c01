# The pinned environment with this code, for `snakemake --sdm apptainer` and for `docker run`: docs/deploying.md.
#   docker build --tag dpdm-bench .                        PyTorch with CUDA
#   docker build --tag dpdm-bench --build-arg PINS=cpu .   its CPU build, from an index given by PIP_EXTRA_INDEX_URL
FROM python:3.11-slim
ARG PINS=cuda
ARG PIP_EXTRA_INDEX_URL
WORKDIR /opt/dpdm-bench
COPY requirements requirements
RUN pip install --no-cache-dir --require-hashes --requirement requirements/$PINS.txt
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation .
WORKDIR /work
CMD ["dpdm", "--help"]
