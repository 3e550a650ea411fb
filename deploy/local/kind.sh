#!/usr/bin/env bash
# The platform and a model on this machine, for those who have Docker: kind, Istio, KServe, Tokenweir.
#
#   deploy/local/kind.sh up [iris|llm]   makes all of it (about 10 minutes), and says how to call the model
#   deploy/local/kind.sh token [NAME]    prints a token for the service account NAME (default alice)
#   deploy/local/kind.sh test [ONLY]     runs the suite of tests/cluster on it, or the tests whose names contain ONLY
#   deploy/local/kind.sh down            removes the cluster and what it kept here
#
# Needs docker, kind, kubectl, helm, openssl and 8 GB of memory (16 for llm). For trials: the gateway speaks plain HTTP,
# on 127.0.0.1:8080, and its tokens are signed with a key that this script makes.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
charts=$here/../../charts
cluster=tokenweir
issuer=https://issuer.tokenweir.local
state=${XDG_STATE_HOME:-$HOME/.local/state}/tokenweir-kind

# As in deploy/flux/sources and deploy/flux/controllers.
cert_manager=v1.20.3
istio=1.30.4
kserve=v0.20.0

main() {
  case ${1:-} in
    up) up "${2:-iris}" ;;
    token) token "${2:-alice}" ;;
    test) run_tests "${2:-}" ;;
    down) down ;;
    *) sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 2 ;;
  esac
}

up() {
  local model=$1
  [[ -f $here/$model.yaml && $model =~ ^(iris|llm)$ ]] || { echo "no such model: $model (iris or llm)" >&2; exit 2; }
  need docker kind kubectl helm openssl
  kind get clusters 2>/dev/null | grep -qx "$cluster" || kind create cluster --name "$cluster" --config "$here/cluster.yaml" --wait 5m
  kubectl config use-context "kind-$cluster" >/dev/null

  say "building Tokenweir's image"
  docker build --quiet --tag tokenweir:0.2.0 "$here/../.." >/dev/null
  kind load docker-image tokenweir:0.2.0 --name "$cluster"

  say "cert-manager $cert_manager"
  release cert-manager cert-manager oci://quay.io/jetstack/charts/cert-manager --version "$cert_manager" --set crds.enabled=true
  say "Istio $istio"
  local repository=(--repo https://istio-release.storage.googleapis.com/charts --version "$istio")
  release istio-base istio-system base "${repository[@]}"
  release istiod istio-system istiod "${repository[@]}" --values "$here/istiod.yaml"
  release istio-ingressgateway istio-ingress gateway "${repository[@]}" --values "$here/istio-gateway.yaml"
  say "KServe $kserve"
  release kserve-crd kserve oci://ghcr.io/kserve/charts/kserve-crd --version "$kserve"
  release kserve-resources kserve oci://ghcr.io/kserve/charts/kserve-resources --version "$kserve" --values "$here/kserve.yaml"
  release kserve-runtime-configs kserve oci://ghcr.io/kserve/charts/kserve-runtime-configs --version "$kserve" --set kserve.servingruntime.enabled=true

  say "the platform and Tokenweir"
  keys
  release platform infra "$charts/platform" --values "$here/platform.yaml" --values "$state/issuer.yaml"
  release tokenweir tokenweir "$charts/tokenweir" --values "$here/tokenweir.yaml"

  say "the model $model"
  kubectl --namespace models get configmap platform-values --output 'jsonpath={.data.values\.yaml}' >"$state/platform-values.yaml"
  release "$model" models "$charts/kserve-model" --values "$state/platform-values.yaml" --values "$here/$model.yaml"
  kubectl --namespace models wait --for=condition=Ready --timeout=30m "inferenceservice/$model"
  try "$model"
}

try() {
  local host=$1-predictor-models.models.localhost path=v1/models/iris:predict body='{"instances": [[6.8, 2.8, 4.8, 1.4]]}'
  if [[ $1 == llm ]]; then
    path=v1/chat/completions
    body='{"model": "llm", "messages": [{"role": "user", "content": "1 + 1 =?"}]}'
  fi
  cat <<TEXT

Ready. Call it (without the token: 403):

  curl http://127.0.0.1:8080/$path -H "Host: $host" -H "Authorization: Bearer \$($0 token)" \\
    -H "Content-Type: application/json" -d '$body'
TEXT
}

release() {
  local name=$1 namespace=$2 chart=$3
  shift 3
  helm upgrade --install "$name" "$chart" --namespace "$namespace" --create-namespace --wait --timeout 10m "$@" >/dev/null
}

# The issuer: a key pair, and its public half as values of charts/platform.
keys() {
  umask 077
  mkdir -p "$state"
  [[ -f $state/key.pem ]] || openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out "$state/key.pem" 2>/dev/null
  local hexadecimal modulus
  hexadecimal=$(openssl rsa -in "$state/key.pem" -noout -modulus 2>/dev/null | cut -d= -f2)
  modulus=$(printf '%b' "$(fold -w2 <<<"$hexadecimal" | sed 's/^/\\x/' | tr -d '\n')" | base64url)
  cat >"$state/issuer.yaml" <<YAML
platform:
  jwt:
    issuers:
      - issuer: $issuer
        audiences: [models]
        jwks: '{"keys": [{"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "local", "e": "AQAB", "n": "$modulus"}]}'
YAML
}

token() {
  need openssl
  keys
  local now head claims
  now=$(date +%s)
  head=$(printf '{"alg":"RS256","typ":"JWT","kid":"local"}' | base64url)
  claims=$(printf '{"iss":"%s","aud":"models","sub":"%s","tenant":"local","iat":%d,"exp":%d}' "$issuer" "$1" "$now" $((now + 3600)) | base64url)
  printf '%s.%s.%s\n' "$head" "$claims" "$(printf '%s.%s' "$head" "$claims" | openssl dgst -sha256 -sign "$state/key.pem" -binary | base64url)"
}

base64url() { openssl base64 -A | tr '+/' '-_' | tr -d '='; }

# What the cluster lacks (KEDA, Flux) is listed at the end as not run.
run_tests() {
  need kind make
  kind get clusters 2>/dev/null | grep -qx "$cluster" || { echo "there is no cluster $cluster: $0 up makes it" >&2; exit 1; }
  umask 077
  mkdir -p "$state"
  kind get kubeconfig --name "$cluster" >"$state/kubeconfig"
  make --no-print-directory -C "$here/../.." cluster KUBECONFIG="$state/kubeconfig" ONLY="$1"
}

down() {
  need kind
  kind delete cluster --name "$cluster"
  rm -rf "$state"
}

need() {
  local each
  for each in "$@"; do
    command -v "$each" >/dev/null || { echo "$each is missing" >&2; exit 1; }
  done
}

say() { printf '== %s\n' "$*"; }

main "$@"
