"""A tiny public LLaMA-VID: random tensors under the public names and shapes, and its head computed from those names.

Written from the public code (``llamavid_arch.py``, ``eva_vit.py``, LAVIS' ``Qformer.py``), in float64 and without this
project's model or name tables. Depths and head widths are the public ones (39 blocks of 88, 12 layers of 64).
"""

import json

import torch
from torch.nn.functional import gelu, layer_norm, linear

C, MLP, PATCH, SIDE = 88, 24, 14, 4
Q, FFN, QUERIES = 64, 20, 4
H, HMLP, LLM_LAYERS, VOCAB, BERT_VOCAB = 32, 40, 2, 700, 650
EVA = "model.vision_tower.vision_tower."


def eva_names(blocks):
    names = {"cls_token": (1, 1, C), "pos_embed": (1, 1 + SIDE**2, C)}
    names |= {"patch_embed.proj.weight": (C, 3, PATCH, PATCH), "patch_embed.proj.bias": (C,)}
    for i in range(blocks):
        for norm in ("norm1", "norm2"):
            names |= {f"blocks.{i}.{norm}.weight": (C,), f"blocks.{i}.{norm}.bias": (C,)}
        names |= {f"blocks.{i}.attn.q_bias": (C,), f"blocks.{i}.attn.v_bias": (C,)}
        names |= {f"blocks.{i}.attn.qkv.weight": (3 * C, C)}
        names |= {f"blocks.{i}.attn.proj.weight": (C, C), f"blocks.{i}.attn.proj.bias": (C,)}
        names |= {f"blocks.{i}.mlp.fc1.weight": (MLP, C), f"blocks.{i}.mlp.fc1.bias": (MLP,)}
        names |= {f"blocks.{i}.mlp.fc2.weight": (C, MLP), f"blocks.{i}.mlp.fc2.bias": (C,)}
    return names


def dense(name, rows, columns):
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def bert_names(layers, *, queries, cross_width):
    names = {"embeddings.word_embeddings.weight": (BERT_VOCAB, Q), "embeddings.position_embeddings.weight": (512, Q)}
    names |= {"embeddings.LayerNorm.weight": (Q,), "embeddings.LayerNorm.bias": (Q,)}
    if not queries:
        names |= {"embeddings.token_type_embeddings.weight": (2, Q)}
    for i in range(layers):
        at = f"encoder.layer.{i}"
        kinds = ["attention"] + (["crossattention"] if not queries or i % 2 == 0 else [])
        for kind in kinds:
            width = cross_width if kind == "crossattention" else Q
            names |= dense(f"{at}.{kind}.self.query", Q, Q)
            names |= dense(f"{at}.{kind}.self.key", Q, width) | dense(f"{at}.{kind}.self.value", Q, width)
            names |= dense(f"{at}.{kind}.output.dense", Q, Q)
            names |= {f"{at}.{kind}.output.LayerNorm.weight": (Q,), f"{at}.{kind}.output.LayerNorm.bias": (Q,)}
        for suffix in ("", "_query") if queries else ("",):
            names |= dense(f"{at}.intermediate{suffix}.dense", FFN, Q) | dense(f"{at}.output{suffix}.dense", Q, FFN)
            names |= {f"{at}.output{suffix}.LayerNorm.weight": (Q,), f"{at}.output{suffix}.LayerNorm.bias": (Q,)}
    return names


def language_names():
    names = {"model.embed_tokens.weight": (VOCAB, H), "model.norm.weight": (H,), "lm_head.weight": (VOCAB, H)}
    for i in range(LLM_LAYERS):
        at = f"model.layers.{i}"
        names |= {f"{at}.self_attn.{x}_proj.weight": (H, H) for x in "qkvo"}
        names |= {f"{at}.mlp.{x}_proj.weight": (HMLP, H) for x in ("gate", "up")}
        names |= {f"{at}.mlp.down_proj.weight": (H, HMLP)}
        names |= {f"{at}.input_layernorm.weight": (H,), f"{at}.post_attention_layernorm.weight": (H,)}
    return names


def head_names(decoder):
    names = dense("model.mm_projector.0", H, C) | dense("model.mm_projector.2", H, H)
    names |= dense("model.vlm_att_projector", C, Q) | dense("model.vlm_att_key_projector", C, C)
    names |= dense("model.vlm_att_val_projector", H, C)
    if decoder == "qformer":
        bert = bert_names(12, queries=True, cross_width=C)
        names |= {
            "model.vlm_att_query": (1, QUERIES, Q),
            "model.vlm_att_ln.weight": (C,),
            "model.vlm_att_ln.bias": (C,),
        }
    else:
        bert = bert_names(2, queries=False, cross_width=Q)
        names |= dense("model.vlm_att_bert_proj", Q, C)
    return names | {f"model.vlm_att_encoder.bert.{name}": shape for name, shape in bert.items()}


def draw(names, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in names.items():
        value = torch.randn(shape, generator=generator) * 0.25
        if "norm" in name.lower() or "vlm_att_ln" in name or "ln_vision" in name:
            value += float(name.endswith("weight"))
        tensors[name] = value.to(dtype)
    return tensors


def whole_model(decoder="qformer"):
    eva = {EVA + name: shape for name, shape in eva_names(39).items()}
    tensors = draw(language_names() | head_names(decoder) | eva)
    # What older transformers saved beside the weights.
    tensors["model.vlm_att_encoder.bert.embeddings.position_ids"] = torch.arange(512)[None]
    tensors |= {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(LLM_LAYERS)}
    return tensors


def config(**values):
    return {
        "architectures": ["LlavaLlamaAttForCausalLM"],
        "model_type": "llava",
        "hidden_size": H,
        "intermediate_size": HMLP,
        "num_hidden_layers": LLM_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "vocab_size": VOCAB,
        "rope_scaling": None,
        "mm_hidden_size": C,
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": -2,
        "bert_type": "qformer_pretrain",
        "num_query": QUERIES,
        "compress_type": "mean",
        "image_processor": "./llamavid/processor/some-other",
    } | values


def save_folder(folder, tensors, values, *, shards=1, index="pytorch_model.bin.index.json"):
    """A public folder of pickled shards (or one file), with its config.json."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(values))
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return folder
    names = sorted(tensors)
    files = {
        name: f"pytorch_model-{i * shards // len(names) + 1:05}-of-{shards:05}.bin" for i, name in enumerate(names)
    }
    for file in set(files.values()):
        torch.save({name: tensors[name] for name in names if files[name] == file}, folder / file)
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


class Reference:
    """The public forward from the public names, in float64."""

    def __init__(self, tensors):
        self.t = {name: value.double() for name, value in tensors.items() if value.is_floating_point()}

    def dense(self, name, x):
        return linear(x, self.t[f"{name}.weight"], self.t[f"{name}.bias"])

    def norm(self, name, x, eps):
        return layer_norm(x, x.shape[-1:], self.t[f"{name}.weight"], self.t[f"{name}.bias"], eps)

    def tower(self, pixels):
        t = self.t
        x = torch.conv2d(pixels.double(), t[EVA + "patch_embed.proj.weight"], t[EVA + "patch_embed.proj.bias"], PATCH)
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([t[EVA + "cls_token"].expand(len(x), -1, -1), x], 1) + t[EVA + "pos_embed"]
        for i in range(39):
            at = f"{EVA}blocks.{i}."
            y = self.norm(at + "norm1", x, 1e-6)
            bias = torch.cat([t[at + "attn.q_bias"], torch.zeros(C), t[at + "attn.v_bias"]])
            q, k, v = linear(y, t[at + "attn.qkv.weight"], bias).chunk(3, -1)
            x = x + self.dense(at + "attn.proj", attend(q, k, v, C // 88))
            x = x + self.dense(at + "mlp.fc2", gelu(self.dense(at + "mlp.fc1", self.norm(at + "norm2", x, 1e-6))))
        return x

    def qformer(self, features, ids):
        bert = "model.vlm_att_encoder.bert."
        vision = self.norm("model.vlm_att_ln", features, 1e-5)
        text = self.t[bert + "embeddings.word_embeddings.weight"][ids]
        text = text + self.t[bert + "embeddings.position_embeddings.weight"][: len(ids)]
        x = torch.cat([self.t["model.vlm_att_query"][0], text])[None].expand(len(features), -1, -1)
        x = self.norm(bert + "embeddings.LayerNorm", x, 1e-12)
        for i in range(12):
            at = f"{bert}encoder.layer.{i}."
            x = self.bert_attention(at + "attention", x, x)
            query, rest = x[:, :QUERIES], x[:, QUERIES:]
            if i % 2 == 0:
                query = self.bert_attention(at + "crossattention", query, vision)
            x = torch.cat([self.ffn(at, "_query", query), self.ffn(at, "", rest)], 1)
        return x[:, :QUERIES]

    def bert(self, features, ids):
        bert = "model.vlm_att_encoder.bert."
        vision = self.dense("model.vlm_att_bert_proj", features[:, 1:])
        x = self.t[bert + "embeddings.word_embeddings.weight"][ids]
        x = x + self.t[bert + "embeddings.position_embeddings.weight"][: len(ids)]
        x = x + self.t[bert + "embeddings.token_type_embeddings.weight"][0]
        x = self.norm(bert + "embeddings.LayerNorm", x[None].expand(len(features), -1, -1), 1e-12)
        for i in range(2):
            at = f"{bert}encoder.layer.{i}."
            x = self.bert_attention(at + "attention", x, x, causal=True)
            x = self.ffn(at, "", self.bert_attention(at + "crossattention", x, vision))
        return x

    def bert_attention(self, at, x, other, *, causal=False):
        q, k, v = (
            self.dense(at + ".self.query", x),
            self.dense(at + ".self.key", other),
            self.dense(at + ".self.value", other),
        )
        mixed = self.dense(at + ".output.dense", attend(q, k, v, Q // 64, causal=causal))
        return self.norm(at + ".output.LayerNorm", mixed + x, 1e-12)

    def ffn(self, at, suffix, x):
        hidden = gelu(self.dense(f"{at}intermediate{suffix}.dense", x))
        return self.norm(f"{at}output{suffix}.LayerNorm", self.dense(f"{at}output{suffix}.dense", hidden) + x, 1e-12)

    def tokens(self, features, ids, decoder):
        """``(F, 2, H)``: context and content token of each frame (``compress_type`` mean)."""
        queries = self.qformer(features, ids) if decoder == "qformer" else self.bert(features, ids)
        patches = features[:, 1:]
        text = self.dense("model.vlm_att_projector", queries)
        scores = text @ self.dense("model.vlm_att_key_projector", patches).transpose(-1, -2) / C**0.5
        context = self.dense("model.vlm_att_val_projector", (scores.softmax(-1) @ patches).mean(1, keepdim=True))
        content = gelu(self.dense("model.mm_projector.0", patches.mean(1, keepdim=True)))
        return torch.cat([context, self.dense("model.mm_projector.2", content)], 1)


def attend(q, k, v, heads, *, causal=False):
    def split(x):
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    q, k, v = split(q), split(k), split(v)
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
