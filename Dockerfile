# Cognate on a CUDA host. The torch wheel brings its own CUDA libraries; the host brings the driver (NVIDIA Container
# Toolkit). Build: docker build -t cognate .      Run: see compose.yaml
FROM python:3.12-slim-bookworm AS build

RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /opt/cognate

# The dependencies first: they change seldom, and torch is large.
COPY pyproject.toml constraints.txt README.md ./
COPY cognate/__init__.py cognate/__init__.py
RUN mkdir app && pip install -c constraints.txt .

COPY . .
RUN pip install --no-deps -e . && tools/vendor.sh


FROM python:3.12-slim-bookworm

# g++ is for torch.compile, which long runs use. tini is process 1, because the end of process 1 ends every other: it reaps what has no parent, and under it
# tools/serve.sh starts the server again should it be killed, while the workers go on.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libc6-dev tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home cognate \
    && install -d -o cognate -g cognate -m 0700 /state

COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/cognate /opt/cognate

# HF_HOME: what fetches datasets keeps its downloads in the home folder otherwise, and compose.yaml makes that read-only.
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 COGNATE_HOME=/state HF_HOME=/state/cache/huggingface COGNATE_HOST=0.0.0.0 COGNATE_PORT=8000
WORKDIR /opt/cognate
USER cognate
VOLUME /state
EXPOSE 8000

HEALTHCHECK --interval=15s --timeout=5s --start-period=30s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]

# -g: what ends the container is told to the server too, not only to its script; workers have sessions of their own.
ENTRYPOINT ["tini", "-g", "--"]
CMD ["tools/serve.sh"]
