# Berth's programs: the worker, the command line, and the simulated site of the demonstration. Static binaries and nothing
# else: no shell, no package manager, no root.
#
#   docker build -t berth .
FROM golang:1.26.8 AS build
WORKDIR /src
COPY . .
ENV CGO_ENABLED=0
# The folders are where the catalog and the simulated site are mounted; a new volume takes their owner over.
RUN go build -trimpath -tags timetzdata -ldflags=-s -o /image/ ./worker ./starter ./simsite && mkdir -p /owned/etc/berth /owned/var/lib/simsite

FROM scratch
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=build /image/ /
COPY --from=build --chown=65532:65532 /owned/ /
USER 65532:65532
ENV BERTH_CATALOG=/etc/berth/catalog.yaml BERTH_LISTEN=0.0.0.0:9464
EXPOSE 9464
HEALTHCHECK --interval=10s --timeout=10s --start-period=90s --retries=6 CMD ["/worker", "health"]
ENTRYPOINT ["/worker"]
