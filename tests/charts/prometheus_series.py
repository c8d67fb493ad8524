"""Series as promtool's unit tests take them, and what a saturated but healthy release reports."""

from collections.abc import Iterable

SECONDS = 30
"""Between two samples."""
SAMPLES = 80
"""Of each series: 40 minutes, more than the longest `for`."""

Series = dict[str, str]
"""Values in promtool's notation, by series."""

POD_NAMES = ("llm-engineroom-triton-6d5f7c9b48-x2k4p", "llm-engineroom-triton-6d5f7c9b48-zz9qm")


def constant(value: float) -> str:
    return f"{value}x{SAMPLES}"


def counter(per_second: float) -> str:
    return f"0+{per_second * SECONDS}x{SAMPLES}"


def on_pods(name: str, values: str, pods: Iterable[str] = POD_NAMES, **labels: str) -> Series:
    """One series of each pod."""
    text = "".join(f',{label}="{value}"' for label, value in labels.items())
    return {f'{name}{{namespace="models",pod="{pod}"{text}}}': values for pod in pods}


def histogram(name: str, shares: dict[str, float], per_second: float = 20) -> Series:
    """Buckets of which each holds a share of all observations; the last upper bound has to be ``+Inf``."""
    found: Series = {}
    seen = 0.0
    for bound, share in shares.items():
        seen += share
        found |= on_pods(f"{name}_bucket", counter(per_second * seen), le=bound)
    return found


def tensorrt_engine(waiting: float = 3, running: float = 64, kv: float = 0.97) -> Series:
    """What the C++ backend reports."""
    requests = {"waiting": waiting, "scheduled": running, "active": waiting + running, "max": 64}
    found: Series = {}
    for kind, value in requests.items():
        found |= on_pods("nv_trt_llm_request_metrics", constant(value), model="tensorrt_llm", request_type=kind)
    for kind, value in {"fraction": kv, "used": kv * 1000, "max": 1000}.items():
        found |= on_pods("nv_trt_llm_kv_cache_block_metrics", constant(value), kv_cache_block_type=kind)
    found |= on_pods("nv_llm_input_token_len_sum", f"800+24000x{SAMPLES}")
    found |= on_pods("nv_llm_input_token_len_count", f"1+30x{SAMPLES}")
    found |= on_pods("nv_llm_output_token_len_sum", counter(1500))
    return found


def model_engine(waiting: float = 3, running: float = 64, kv: float = 0.97) -> Series:
    """What our Python model reports, for the runtimes pytorch and ctranslate2."""
    return (
        on_pods("engineroom_requests_waiting", constant(waiting), model="tensorrt_llm")
        | on_pods("engineroom_requests_running", constant(running), model="tensorrt_llm")
        | on_pods("engineroom_requests_slots", constant(64), model="tensorrt_llm")
        | on_pods("engineroom_queued_prompt_tokens", constant(800 * waiting), model="tensorrt_llm")
        | on_pods("engineroom_kv_used_ratio", constant(kv), model="tensorrt_llm")
    )


def gateway(waiting: float = 2, running: float = 67) -> Series:
    return (
        on_pods("engineroom_gateway_requests_waiting", constant(waiting))
        | on_pods("engineroom_gateway_requests_running", constant(running))
        | on_pods("engineroom_gateway_queued_prompt_tokens", constant(800 * waiting))
        | on_pods("engineroom_gateway_generated_tokens_total", counter(1500))
        | gateway_calls()
        | ttft("0.2")
        | itl("0.05")
        | histogram("engineroom_gateway_e2e_seconds", {"5": 0.9, "10": 0.1, "+Inf": 0})
        | histogram("engineroom_gateway_queue_seconds", {"0.05": 0.9, "0.1": 0.1, "+Inf": 0})
    )


def gateway_calls(failing: float = 0, reason: str = "upstream_error") -> Series:
    """20 requests a second on each pod, of which some fail."""
    return (
        on_pods("engineroom_gateway_requests_total", counter(20 - failing), status="200")
        | on_pods("engineroom_gateway_requests_total", counter(failing), status="502")
        | on_pods("engineroom_gateway_rejected_total", counter(failing), reason=reason)
    )


def backup(age_hours: float, *, ever: bool = True) -> Series:
    """The clock of promtool starts at 0, so an older backup is a negative time. The CronJob itself is 100 hours old."""
    labels = '{namespace="models",cronjob="llm-engineroom-backup"}'
    found = {f"kube_cronjob_created{labels}": constant(-100 * 3600)}
    if ever:
        found[f"kube_cronjob_status_last_successful_time{labels}"] = constant(-age_hours * 3600)
    return found


def ttft(slowest: str) -> Series:
    """Time to first token: 92 % within 0.1 s, all others in the bucket below ``slowest``."""
    return latency("engineroom_gateway_ttft_seconds", ("0.1", "0.2", "0.5", "1"), slowest)


def itl(slowest: str) -> Series:
    """Time between tokens: 92 % within 0.025 s, all others in the bucket below ``slowest``."""
    return latency("engineroom_gateway_itl_seconds", ("0.025", "0.05", "0.1"), slowest, per_second=1500)


def latency(name: str, bounds: tuple[str, ...], slowest: str, per_second: float = 20) -> Series:
    shares = dict.fromkeys((*bounds, "+Inf"), 0.0)
    shares[bounds[0]] = 0.92
    shares[slowest] += 0.08
    return histogram(name, shares, per_second)


def triton_calls(client_model: str, failing: float = 0, reason: str = "BACKEND") -> Series:
    return on_pods("nv_inference_request_success", counter(20 - failing), model=client_model) | on_pods(
        "nv_inference_request_failure", counter(failing), model=client_model, reason=reason
    )


def gpu(utilisation: float, prefix: str = "") -> Series:
    return {
        f'DCGM_FI_DEV_GPU_UTIL{{gpu="{index}",{prefix}namespace="models",{prefix}pod="{pod}"}}': constant(utilisation)
        for index, pod in enumerate(POD_NAMES)
    }


def deployment(available: int = 2, wanted: int = 2) -> Series:
    labels = '{namespace="models",deployment="llm-engineroom-triton"}'
    return {
        f"kube_deployment_status_replicas_available{labels}": constant(available),
        f"kube_deployment_spec_replicas{labels}": constant(wanted),
    }


def autoscaler(current: int = 8, *, limited: bool = False, active: bool = True) -> Series:
    """At its maximum of 8 and content, unless told otherwise."""
    labels = 'namespace="models",horizontalpodautoscaler="llm-engineroom-autoscaler"'
    found = {
        f"kube_horizontalpodautoscaler_status_current_replicas{{{labels}}}": constant(current),
        f"kube_horizontalpodautoscaler_spec_max_replicas{{{labels}}}": constant(8),
    }
    for condition, true in {"ScalingLimited": limited, "ScalingActive": active}.items():
        for status in ("true", "false"):
            series = (
                f'kube_horizontalpodautoscaler_status_condition{{{labels},condition="{condition}",status="{status}"}}'
            )
            found[series] = constant(int(true == (status == "true")))
    return found


def preflight(restarts: str = "0") -> Series:
    return on_pods("kube_pod_init_container_status_restarts_total", f"{restarts}x{SAMPLES}", container="preflight")


def healthy(runtime: str) -> Series:
    """Slots full, GPU at 99 %, KV cache at 97 %, five requests waiting per replica, good latencies."""
    engine, client = (
        (tensorrt_engine(), "tensorrt_llm_bls") if runtime == "tensorrt" else (model_engine(), "tensorrt_llm")
    )
    found = engine | gateway() | triton_calls(client) | deployment() | autoscaler() | preflight() | backup(35)
    return found | (gpu(99) if runtime != "ctranslate2" else {})
