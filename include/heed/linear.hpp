#pragma once

#include <heed/recur/linear_attention.hpp>

#include <heed/recur/causal_convolution.hpp>
#include <heed/recur/diagonal_scan.hpp>
#include <heed/recur/features/channel_softmax.hpp>
#include <heed/recur/features/cosine_reweighted.hpp>
#include <heed/recur/features/dpfp.hpp>
#include <heed/recur/features/elementwise.hpp>
#include <heed/recur/features/favor.hpp>
#include <heed/recur/features/polynomial.hpp>
#include <heed/recur/features/stable_exponential.hpp>

#include <heed/mechanism/abc.hpp>
#include <heed/mechanism/agent_attention.hpp>
#include <heed/mechanism/agent_grid.hpp>
#include <heed/mechanism/based.hpp>
#include <heed/mechanism/chela.hpp>
#include <heed/mechanism/cosformer.hpp>
#include <heed/mechanism/delta_rule.hpp>
#include <heed/mechanism/efficient_attention.hpp>
#include <heed/mechanism/efla.hpp>
#include <heed/mechanism/ema.hpp>
#include <heed/mechanism/fast_attention.hpp>
#include <heed/mechanism/flow_attention.hpp>
#include <heed/mechanism/gated_linear_attention.hpp>
#include <heed/mechanism/gated_slot_attention.hpp>
#include <heed/mechanism/hymba.hpp>
#include <heed/mechanism/lara.hpp>
#include <heed/mechanism/learned_features.hpp>
#include <heed/mechanism/lightnet.hpp>
#include <heed/mechanism/lightning_attention.hpp>
#include <heed/mechanism/lizard.hpp>
#include <heed/mechanism/long_short.hpp>
#include <heed/mechanism/lrpe.hpp>
#include <heed/mechanism/mega.hpp>
#include <heed/mechanism/memora.hpp>
#include <heed/mechanism/moneta.hpp>
#include <heed/mechanism/nystrom.hpp>
#include <heed/mechanism/performer.hpp>
#include <heed/mechanism/probsparse.hpp>
#include <heed/mechanism/rat.hpp>
#include <heed/mechanism/s4d.hpp>
#include <heed/mechanism/sea_estimator.hpp>
#include <heed/mechanism/selective_scan.hpp>
#include <heed/mechanism/sequence_parallel.hpp>
#include <heed/mechanism/state_space_dual.hpp>
#include <heed/mechanism/titans.hpp>
#include <heed/mechanism/titans_layers.hpp>
#include <heed/mechanism/toeplitz_mixing.hpp>
#include <heed/mechanism/yaad.hpp>

/// Linear attention and recurrences: a state instead of a past, at a cost for each token that does not grow with the length.
///
/// The engine is linear_attention() (recur/linear_attention.hpp): a feature map, a decay, an update rule and a normaliser,
/// named in any order, forward in chunks, backward, and a token at a time from a state:
///
///     heed::linear_attention(q, k, v, out, heed::elu_plus_one{}, heed::normalised{});
///     heed::linear_attention(q, k, v, out, heed::delta{rates}, heed::decay{log_gates}, heed::state{s}, heed::on{pool});
///     heed::linear_attention_step(q, k, v, out, s, heed::delta{rates}, heed::decay{log_gates});
///
/// What you want                                              | use
/// -----------------------------------------------------------|-----------------------------------------------------
/// a kernel for softmax                                       | elu_plus_one, relu, dpfp, channel_softmax, polynomial,
///                                                            | favor_relu, … with normalised; performer, cosformer,
///                                                            | based, fast_attention; t2r, hedgehog (learned_features)
/// one decay a head (retention, Lightning Attention, TNL)     | fixed_decay with retention_decays, lightning_decays
/// a gate for each token (Mamba-2, SSD)                       | decay; state_space_dual
/// a gate for each feature (GLA)                              | key_decay; gated_linear_attention
/// slots (GSA, ABC)                                           | gated_slot_attention, abc_attention
/// a running softmax over the past (LightNet)                 | lightnet, causal_efficient_attention
/// to overwrite rather than add                               | delta, exact_delta (EFLA), with decay: gated delta rule
/// a memory that is trained while it is read                  | titans, moneta, yaad, memora
/// a state for each channel (Mamba, S4D, EMA)                 | selective_scan, s4d, exponential_moving_average,
///                                                            | diagonal_scan, causal_convolution
/// recurrence and window together                             | lizard, hymba_fusion, chela, mega_attention, rat
/// all positions at once, without a state                     | efficient_attention, flow_attention, agent_attention,
///                                                            | nystrom_attention, lara_attention, long_short_attention
///
/// What it costs: 4 F E + (C + 1) (F + E) operations a token and head for F features, E channels of the value and chunks of
/// C = 32 or 64 tokens; the delta rule takes half as much more. Causal softmax is the cheaper one up to some 150
/// tokens. A step reads and writes the state once.
