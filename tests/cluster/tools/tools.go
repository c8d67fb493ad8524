//go:build tools

// Package tools names the programs of a Kubernetes control plane, so that `go mod tidy` keeps what they need in go.sum.
// ci/cluster-tools builds them; nothing else of engineroom is written in Go.
package tools

import (
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kube-controller-manager"
	_ "k8s.io/kubernetes/cmd/kube-scheduler"
)
