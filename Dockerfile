# One image for every node of a cluster, learner and actors alike, and a small one for TensorBoard.
#
#   docker build -t heldout .                                  torch as the package index has it (with CUDA: large)
#   docker build --build-arg PIP_EXTRA_INDEX_URL=... ...       torch from another index: PyTorch's for CPUs, or a mirror
#   docker build --target tensorboard -t heldout-tensorboard .
#
# The arguments reach only the stages that install packages; the final image contains nothing of them.

# 3.11, 3.12 or 3.13: --build-arg PYTHON=3.13. A cluster's nodes need the same image.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim-bookworm AS base
# Procgen loads these two libraries.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 \
    && apt-get clean && rm -rf /var/lib/apt/lists/*
# A new volume takes the owner of the directory it is mounted on.
RUN useradd --uid 1000 --user-group --create-home heldout \
    && install -d -o heldout -g heldout -m 0750 /runs \
    && install -d -o heldout -g heldout -m 0700 /token


# TensorBoard in a separate image: it needs a newer numpy than Procgen allows.
FROM base AS tensorboard
ARG PIP_INDEX_URL
COPY deploy/docker/tensorboard.txt /tmp/
RUN python -m venv /opt/tensorboard \
    && /opt/tensorboard/bin/pip install --no-cache-dir --only-binary :all: -r /tmp/tensorboard.txt \
    && /opt/tensorboard/bin/pip uninstall -y pip setuptools \
    && rm /tmp/tensorboard.txt
ENV PATH=/opt/tensorboard/bin:$PATH
USER 1000:1000
WORKDIR /home/heldout
EXPOSE 6006
CMD ["tensorboard", "--logdir", "/runs", "--host", "0.0.0.0", "--port", "6006"]


# Extracts the requirements from pyproject.toml, so that other changes to that file do not invalidate the next stage.
FROM base AS requirements
WORKDIR /tmp/heldout
COPY pyproject.toml ./
COPY deploy/docker/requirements.py ./
RUN python requirements.py pyproject.toml


FROM base AS dependencies
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
RUN python -m venv /opt/heldout
COPY constraints.txt procgen-gym.txt /tmp/
COPY --from=requirements /tmp/heldout/build.txt /tmp/heldout/run.txt /tmp/
# Install the pinned build tool first, so that nothing is built with another version.
RUN /opt/heldout/bin/pip install --no-cache-dir -c /tmp/constraints.txt -r /tmp/build.txt \
    && /opt/heldout/bin/pip install --no-cache-dir --no-deps --require-hashes -c /tmp/constraints.txt -r /tmp/procgen-gym.txt \
    && /opt/heldout/bin/pip install --no-cache-dir --no-build-isolation -c /tmp/constraints.txt -r /tmp/run.txt \
    && /opt/heldout/bin/pip check \
    && /opt/heldout/bin/pip uninstall -y pip setuptools


# Our packages in a separate layer, the only one that a change to the code rebuilds.
FROM base AS code
ARG PIP_INDEX_URL
WORKDIR /tmp/heldout
RUN python -m venv /tmp/build
COPY --from=requirements /tmp/heldout/build.txt ./
RUN /tmp/build/bin/pip install --no-cache-dir -r build.txt
COPY pyproject.toml README.md LICENSE ./
COPY actors actors
COPY common common
COPY evaluator evaluator
COPY learner learner
RUN /tmp/build/bin/pip install --no-cache-dir --no-build-isolation --no-deps --target /tmp/code .


FROM base AS heldout
ARG PYTHON
COPY --from=dependencies /opt/heldout /opt/heldout
COPY --from=code /tmp/code /opt/heldout/lib/python${PYTHON}/site-packages
COPY deploy/docker/token.sh deploy/docker/head.sh deploy/docker/node.sh deploy/docker/healthy.py /usr/local/bin/
# Kubernetes operators use a login shell, which resets PATH.
RUN ln -s /opt/heldout/bin/ray /usr/local/bin/ray \
    && echo 'PATH=/opt/heldout/bin:$PATH' >/etc/profile.d/heldout.sh
ENV PATH=/opt/heldout/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0
USER 1000:1000
WORKDIR /home/heldout
CMD ["python", "-m", "learner", "--help"]
