// Istio's API: the kinds that the chart brings along.
module sluice/xtask/kube/istio

go 1.26.0

require istio.io/api v1.32.0
