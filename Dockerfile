# The gateway's image.
#
#   docker build .                 with the AWS CLI, for TERMGW_EICE_TUNNEL=aws-cli
#   docker build --target slim .   without it, for the native tunnel, which is the default
#
# `make image` makes both, with the version in them. Any builder will do: nothing here needs BuildKit.
# The page in the browser is the demo's alone, so no Node is needed either.

# The base images, of Docker's official library, by digest: what a tag means changes. scripts/pin-images renews them; other
# images, such as a mirror's, are given by --build-arg.
ARG GOLANG_IMAGE=golang:1.26-trixie@sha256:0e214333a799b48cce126b20a906cbbcaacd04f55dd54aa22f050fbd9462965a
ARG DEBIAN_IMAGE=debian:trixie-slim@sha256:d7e12182ce18b85b93007c1dedf31f2d29e01ccf3182cc4017c709b6259bc132

# The program is built on the builder's own platform, for the one that is asked for: `docker buildx build --platform
# linux/amd64,linux/arm64 .`. A builder that names no platforms, as Docker's legacy one, is on amd64, or is told
# --build-arg BUILDPLATFORM=linux/arm64.
ARG BUILDPLATFORM=${BUILDPLATFORM:-linux/amd64}

ARG VERSION=dev
ARG COMMIT=unknown
ARG DATE=unknown


FROM --platform=${BUILDPLATFORM} ${GOLANG_IMAGE} AS build
WORKDIR /src
# The modules stay cached while only the source changes.
COPY go.mod go.sum ./
RUN go mod download
COPY . .
ARG VERSION
ARG COMMIT
ARG DATE
ARG TARGETARCH
ENV GOARCH=${TARGETARCH}
# As `make build` does it: the same source and the same Go give the same bytes, in here and outside.
RUN scripts/keeper
RUN CGO_ENABLED=0 go build -trimpath -buildvcs=false \
        -ldflags "-s -w -X main.version=${VERSION} -X main.commit=${COMMIT} -X main.date=${DATE}" \
        -o /usr/local/bin/termgw ./cmd/termgw
RUN mkdir /notices && cp LICENSE /notices/ && scripts/notices >/notices/third-party.txt


FROM ${DEBIAN_IMAGE} AS base
# Volumes are mounted for uid and gid 1000. Base images have come with a user or a group of their own there: the user
# goes, the group gets a new name. ssh asks for the account of the uid that it runs as.
RUN set -eu; \
    while taken=$(getent passwd 1000); do userdel "${taken%%:*}"; done; \
    if taken=$(getent group 1000); then groupmod --new-name termgw "${taken%%:*}"; else groupadd --gid 1000 termgw; fi; \
    useradd --uid 1000 --gid 1000 --create-home --shell /usr/sbin/nologin termgw; \
    ours="$(id -un 1000) $(id -u termgw) $(id -gn termgw) $(id -G termgw)" || true; \
    if [ "$ours" != 'termgw 1000 termgw 1000' ]; then \
        echo "uid and gid 1000 are not termgw's alone, and mounted volumes expect that: '$ours'" >&2; exit 1; \
    fi
# The gateway asks for no rights that it was not started with: no file gives any, neither ssh-keysign nor the base's su.
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates openssh-client \
    && rm -rf /var/lib/apt/lists/* /var/log/* /var/cache/* \
    && find / -xdev -type f -perm /6000 -exec chmod ug-s {} +
USER 1000:1000
EXPOSE 8080
ENTRYPOINT ["/usr/local/bin/termgw"]
CMD ["serve"]
LABEL org.opencontainers.image.title="termgw" \
      org.opencontainers.image.description="A terminal gateway: browser to workspace, by a signed ticket and a WebSocket" \
      org.opencontainers.image.source="https://github.com/molecule-ai/termgw" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name="docker.io/library/debian:trixie-slim"


FROM base AS slim
COPY --from=build /notices /usr/share/doc/termgw
COPY --from=build /usr/local/bin/termgw /usr/local/bin/termgw
ARG VERSION
ARG COMMIT
ARG DATE
LABEL org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.created="${DATE}"


# The AWS CLI lies below the program: releases share its layer.
FROM base AS aws
USER 0:0
RUN apt-get update \
    && apt-get install -y --no-install-recommends awscli \
    && rm -rf /var/lib/apt/lists/* /var/log/* /var/cache/* \
    && find / -xdev -type f -perm /6000 -exec chmod ug-s {} +
USER 1000:1000


FROM aws
COPY --from=build /notices /usr/share/doc/termgw
COPY --from=build /usr/local/bin/termgw /usr/local/bin/termgw
ARG VERSION
ARG COMMIT
ARG DATE
LABEL org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.created="${DATE}"
