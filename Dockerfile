# docker build -t meru . && docker run --rm meru
# Built by buildah on Debian with Python 3.11 in place of the official image: INSTALL.md says what ran in it.
FROM python:3.11-slim-bookworm

# git: the commit of a run; the compiler: torch.compile and Triton on a GPU; Chromium: the explorer's tests
RUN apt-get update \
 && apt-get install -y --no-install-recommends git g++ chromium chromium-driver \
 && rm -rf /var/lib/apt/lists/*

WORKDIR /meru
COPY requirements.lock ./
RUN pip install --no-cache-dir -r requirements.lock
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation -e . \
 && git config --global --add safe.directory /meru

ENV GOMP_SPINCOUNT=1000
# SIGTERM says nothing to Python as the first process of a container
STOPSIGNAL SIGINT
ENTRYPOINT ["python", "-m", "meru"]
CMD ["test"]
