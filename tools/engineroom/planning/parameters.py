"""How many weights a model of a shape has, part by part: total, and those that one token passes through.

Checked against the modules that transformers makes of published configs (tests/planning/reference).
"""

from engineroom.checkpoint.shape import ModelShape


def count_parameters(shape: ModelShape) -> int:
    """Number of weights, computed from the shape: for a checkpoint whose weights are not here."""
    experts = shape.experts
    sparse = experts.layers if experts else 0
    body = shape.layers * (attention_parameters(shape) + norm_parameters(shape))
    body += (shape.layers - sparse) * dense_mlp_parameters(shape)
    body += sparse * (router_parameters(shape) + shared_parameters(shape))
    if experts:
        body += sparse * experts.count * expert_parameters(shape)
    ends = embedding_parameters(shape) * (1 if shape.tie_embeddings else 2)
    positions = shape.learned_positions * shape.hidden_size
    return ends + positions + body + shape.hidden_size * (2 if shape.layer_norm else 1)


def active_parameters(shape: ModelShape, total: int | None = None) -> int:
    """Weights that one token passes through: all but the experts that its router leaves out.

    ``total`` is the number in the safetensors headers where there is one; else it is computed.
    """
    total = count_parameters(shape) if total is None else total
    experts = shape.experts
    if experts is None:
        return total
    idle = experts.layers * (experts.count - experts.active) * expert_parameters(shape)
    return max(1, total - idle)


def replicated_parameters(shape: ModelShape, tp: int) -> int:
    """Of one layer, what each of ``tp`` ranks holds whole: 0 extra for one rank, so that shares add up.

    Norms and the router; KV heads that are repeated where ranks outnumber them (tensor parallelism of
    grouped-query attention); the compressions of latent attention, which come before its heads.
    """
    if tp == 1:
        return 0
    whole = norm_parameters(shape) + router_parameters(shape)
    if (latent := shape.latent) is not None:
        down = latent.kv_rank + latent.rope_dim + (latent.query_rank or 0)
        return whole + down * shape.hidden_size
    if tp > shape.kv_heads:
        whole += 2 * shape.head_dim * shape.hidden_size
    return whole


def embedding_parameters(shape: ModelShape) -> int:
    """The table of embeddings; the output head has as many where it is not tied."""
    return shape.vocab_size * shape.hidden_size


def routed_parameters(shape: ModelShape) -> int:
    """All routed experts of all layers: what expert parallelism shares out."""
    experts = shape.experts
    return experts.layers * experts.count * expert_parameters(shape) if experts else 0


def attention_parameters(shape: ModelShape) -> int:
    """Projections, their biases and the norms of queries and keys, of one layer."""
    hidden, heads = shape.hidden_size, shape.heads
    if (latent := shape.latent) is not None:
        head = latent.nope_dim + latent.rope_dim
        rank = latent.query_rank
        query = hidden * heads * head if rank is None else hidden * rank + rank + rank * heads * head
        keys = hidden * (latent.kv_rank + latent.rope_dim) + latent.kv_rank
        values = latent.kv_rank * heads * (latent.nope_dim + latent.value_dim)
        return query + keys + values + heads * latent.value_dim * hidden
    rows, kv_rows = heads * shape.head_dim, shape.kv_heads * shape.head_dim
    biases = (rows + 2 * kv_rows if shape.attention_bias else 0) + (hidden if shape.output_bias else 0)
    return 2 * hidden * (rows + kv_rows) + biases + (2 * shape.head_dim if shape.query_key_norm else 0)


def norm_parameters(shape: ModelShape) -> int:
    """The norms of one layer that are as wide as the model."""
    return shape.norms * shape.hidden_size * (2 if shape.layer_norm else 1)


def dense_mlp_parameters(shape: ModelShape) -> int:
    """The MLP of a layer without experts."""
    matrices = 3 if shape.gated_mlp else 2
    biases = (matrices - 1) * shape.intermediate_size + shape.hidden_size if shape.mlp_bias else 0
    return matrices * shape.hidden_size * shape.intermediate_size + biases


def expert_parameters(shape: ModelShape) -> int:
    """One routed expert of one layer; 0 where there are none."""
    return 3 * shape.hidden_size * shape.experts.intermediate_size if shape.experts else 0


def shared_parameters(shape: ModelShape) -> int:
    """The experts that every token passes through, of one layer, with their gate."""
    if shape.experts is None:
        return 0
    gate = shape.hidden_size if shape.experts.shared_gate else 0
    return 3 * shape.hidden_size * shape.experts.shared_intermediate_size + gate


def router_parameters(shape: ModelShape) -> int:
    """What decides which experts a token goes to, in one layer."""
    if shape.experts is None:
        return 0
    return shape.experts.count * (shape.hidden_size + (1 if shape.experts.router_bias else 0))
