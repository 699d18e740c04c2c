# One image for every Headrace service; docker-compose.yml says which process a container runs.
FROM python:3.11.14-slim-trixie

RUN useradd --create-home --uid 10001 headrace && mkdir /data && chown headrace /data
WORKDIR /app

# torch first, as the Makefile does: what follows finds it installed.
RUN pip install --no-cache-dir torch==2.13.0
COPY pyproject.toml constraints.txt README.md ./
COPY headrace headrace
COPY flows flows
COPY serving serving
COPY training training
RUN pip install --no-cache-dir -c constraints.txt .
COPY feature_repo feature_repo

USER headrace
ENV HEADRACE_DATA=/data HEADRACE_FEATURE_REPO=/app/feature_repo PYTHONUNBUFFERED=1
VOLUME /data
CMD ["headrace", "--help"]
