# Two images of one build: `frontend` (API and Ray's heads, no torch) and `gpu` (workers; also runs on a CPU).
#   docker build --target frontend -t dreamserve-frontend:0.2.0 .
#   docker build --target gpu -t dreamserve-gpu:0.2.0 .
# For a much smaller `gpu` image without CUDA: --build-arg PIP_EXTRA_INDEX_URL=<PyTorch's index of CPU wheels>.

FROM busybox:1.37.0-musl AS busybox

FROM python:3.11.14-slim-bookworm AS build
ENV PATH=/opt/dreamserve/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
RUN python -m venv /opt/dreamserve && pip install pip==26.3
COPY LICENSE README.md pyproject.toml constraints.txt ./

FROM build AS wheel
COPY service service
COPY workers workers
COPY reward_models reward_models
RUN pip wheel --no-deps --wheel-dir /wheel .

# In both: the dependencies first, which change seldom and are large.
FROM build AS build-frontend
RUN pip install -c constraints.txt --group frontend
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel pip install --no-deps /wheel/*.whl

FROM build AS build-gpu
ARG PIP_EXTRA_INDEX_URL=
RUN pip install -c constraints.txt --only-deps '.[postgres]' \
    && pip install -c constraints.txt --no-deps clip-anytorch
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel pip install --no-deps /wheel/*.whl

FROM python:3.11.14-slim-bookworm AS run
# KubeRay's probes call wget.
COPY --from=busybox /bin/busybox /usr/local/bin/wget
RUN groupadd --gid 1000 dreamserve \
    && useradd --uid 1000 --gid 1000 --create-home dreamserve \
    && install -d -o dreamserve -g dreamserve /var/lib/dreamserve
ENV PATH=/opt/dreamserve/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    DREAMSERVE_DATA_DIR=/var/lib/dreamserve
WORKDIR /var/lib/dreamserve
USER 1000:1000
CMD ["dreamserve", "--help"]

FROM run AS frontend
COPY --from=build-frontend /opt/dreamserve /opt/dreamserve
EXPOSE 8000

FROM run AS gpu
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build-gpu /opt/dreamserve /opt/dreamserve
