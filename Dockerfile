# One image for every node of a cluster, learner and actors alike, and a small one for TensorBoard.
#
#   docker build -t heldout .                                  torch as the package index has it (with CUDA: large)
#   docker build --build-arg PIP_EXTRA_INDEX_URL=... ...       torch from another index: PyTorch's for CPUs, or a mirror
#   docker build --target tensorboard -t heldout-tensorboard .
#
# The arguments reach only the stages that install; nothing of them is in the image that is kept.

FROM python:3.11-slim-bookworm AS base
# Procgen loads libgl1 and libglib2.0-0.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 \
    && apt-get clean && rm -rf /var/lib/apt/lists/*
# A new volume takes the owner of the directory that it covers.
RUN useradd --uid 1000 --user-group --create-home heldout \
    && install -d -o heldout -g heldout -m 0750 /runs \
    && install -d -o heldout -g heldout -m 0700 /token


# TensorBoard by itself: it wants a numpy that Procgen cannot have.
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


# What to install, taken from pyproject.toml: a change elsewhere in that file leaves the next stage as it is.
FROM base AS requirements
WORKDIR /tmp/heldout
COPY pyproject.toml ./
COPY deploy/docker/requirements.py ./
RUN python requirements.py pyproject.toml


FROM base AS dependencies
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
RUN python -m venv /opt/heldout
COPY constraints.txt /tmp/
COPY --from=requirements /tmp/heldout/build.txt /tmp/heldout/run.txt /tmp/
# The builder comes first: with it in place nothing is built with a version that is not pinned.
RUN /opt/heldout/bin/pip install --no-cache-dir -c /tmp/constraints.txt -r /tmp/build.txt \
    && /opt/heldout/bin/pip install --no-cache-dir --no-build-isolation -c /tmp/constraints.txt -r /tmp/run.txt \
    && /opt/heldout/bin/pip check \
    && /opt/heldout/bin/pip uninstall -y pip setuptools


# Our own packages in a layer of their own: it is all that a change of the code changes.
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
COPY --from=dependencies /opt/heldout /opt/heldout
COPY --from=code /tmp/code /opt/heldout/lib/python3.11/site-packages
COPY deploy/docker/token.sh deploy/docker/head.sh deploy/docker/node.sh deploy/docker/healthy.py /usr/local/bin/
# A login shell, which Kubernetes operators use, forgets PATH.
RUN ln -s /opt/heldout/bin/ray /usr/local/bin/ray \
    && echo 'PATH=/opt/heldout/bin:$PATH' >/etc/profile.d/heldout.sh
ENV PATH=/opt/heldout/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    RAY_AUTH_MODE=token \
    RAY_USAGE_STATS_ENABLED=0
USER 1000:1000
WORKDIR /home/heldout
CMD ["python", "-m", "learner", "--help"]
