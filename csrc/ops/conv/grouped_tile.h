// What the warps of a block do in a grouped convolution or its data gradient, for CPU and CUDA
// alike: a Warp is a CudaWarp or a CpuWarp.
#pragma once

#include <cstddef>

#include "ops/conv/grouped.h"
#include "ops/conv/staging.h"

namespace vramkit::ops {

/// One convolution: result = relu(weights * from + bias), both channels-last.
template <class Type>
struct GroupedPass {
  const typename Type::Bits* from;
  typename Type::Bits* to;
  const typename Type::Bits* weight;
  const typename Type::Bits* bias;  // null: none
  GroupedSlide slide;
  GroupedWeights weights;
  float least;  // of the result: 0 with ReLU, else -infinity
};

/// Shared memory of a block: the window, and before it, in the same place, the weights.
template <class Shape, class Map>
std::size_t grouped_bytes(int across, const GroupedWeights& weights) {
  const int elements =
      std::max(grouped_window_elements<Shape, Map>(across), weights.elements(Shape::kSlab));
  return static_cast<std::size_t>(elements) * 2;
}

template <class Shape, class Map>
GroupedPlan plan_grouped_tiles(const GroupedSlide& slide, const GroupedWeights& weights) {
  return plan_grouped<Shape>(slide, [&](int across) {
    return static_cast<int>(grouped_bytes<Shape, Map>(across, weights));
  });
}

template <class Shape>
VRAMKIT_ON_BOTH inline int channels_left(int channels, int slab) {
  const int rest = channels - slab * Shape::kSlab;
  return rest < Shape::kSlab ? rest : Shape::kSlab;
}

/// Thread `index` of a block copies its share of a slab's weights, in their order.
template <class Shape, class Bits>
VRAMKIT_ON_BOTH inline void stage_grouped_weights(const Bits* weight, const GroupedWeights& weights,
                                                  int channels, int slab, int index, Bits* staged) {
  const Bits* const from = weight + weights.elements(slab * Shape::kSlab);
  const int count = weights.elements(channels_left<Shape>(channels, slab));
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) {
    for (int i = index; i < count; i += kGroupedThreads) staged[i] = from[i];
    return;
  }
  for (int i = index; i < count / 8; i += kGroupedThreads) {
    copy_or_clear(staged + 8 * i, from + 8 * i, true);
  }
}

/// The weight of output `to` and input `from` of the group that begins with a slab's channel
/// `first`; 0 where the convolution does not connect them.
template <class Bits>
VRAMKIT_ON_BOTH inline uint32_t grouped_weight(const Bits* staged, const GroupedWeights& weights,
                                               int first, int channels, int to, int from, int tap) {
  if (first >= channels || to >> weights.shift != from >> weights.shift) return 0;
  const int row = weights.transposed ? from : to;
  const int column = weights.transposed ? to : from;
  const int64_t at = weights.elements(first + row) +
                     (column & (weights.channels - 1)) * weights.channel_stride +
                     tap * weights.tap_stride;
  return staged[at];
}

/// Products of 16 input values for each tile of a row of taps, and those of 8.
template <class Shape, class Columns>
inline constexpr int kGroupedSteps =
    Shape::kSmall ? Columns::kCount / 2 : Columns::kCount* Shape::kGroup / 16;
template <class Shape, class Columns>
inline constexpr int kGroupedHalves = Shape::kSmall ? Columns::kCount % 2 : 0;

/// A lane's part of the weights of a unit.
template <class Shape, class Rows, class Columns>
struct GroupedRights {
  static constexpr int kSteps = kGroupedSteps<Shape, Columns>;
  static constexpr int kHalves = kGroupedHalves<Shape, Columns>;
  RightFragment steps[Rows::kCount][kSteps == 0 ? 1 : kSteps][Shape::kTiles];
  uint32_t halves[Rows::kCount][Shape::kTiles];
};

/// Where a unit begins among the channels of a slab, and the channels that it reads.
template <class Shape>
VRAMKIT_ON_BOTH constexpr int unit_group(int unit) {
  return unit * Shape::kUnit / Shape::kGroup * Shape::kGroup;
}

/// The two weights of a lane's word: row `k` and the next of a tile's column lane / 4.
template <class Shape, class Rows, class Columns, class Bits>
VRAMKIT_ON_BOTH inline uint32_t grouped_word(const Bits* staged, const GroupedWeights& weights,
                                             int channels, int unit, int tile, int y, int x,
                                             int from, int lane) {
  const int column = lane / 4;
  // A lane's sums of two tiles of a group are neighbours.
  const int to = Shape::kSmall
                     ? column
                     : unit * Shape::kUnit % Shape::kGroup + column / 2 * 4 + tile * 2 + column % 2;
  const int first = unit_group<Shape>(unit) + (Shape::kSmall ? tile * 8 : 0);
  const int tap_y = Rows::kCount == 1 ? 1 : weights.first_tap + y * weights.tap_step;
  const int tap_x = Columns::kCount == 1 ? 1 : weights.first_tap + x * weights.tap_step;
  const int tap = tap_y * kGroupedTaps + tap_x;
  return grouped_weight(staged, weights, first, channels, to, from, tap) |
         grouped_weight(staged, weights, first, channels, to, from + 1, tap) << 16;
}

template <class Shape, class Rows, class Columns, class Bits>
VRAMKIT_ON_BOTH inline void load_grouped_rights(const Bits* staged, const GroupedWeights& weights,
                                                int channels, int unit, int lane,
                                                GroupedRights<Shape, Rows, Columns>& rights) {
  using Rights = GroupedRights<Shape, Rows, Columns>;
  const int k = lane % 4 * 2;
  VRAMKIT_UNROLL
  for (int y = 0; y < Rows::kCount; ++y) {
    VRAMKIT_UNROLL
    for (int tile = 0; tile < Shape::kTiles; ++tile) {
      VRAMKIT_UNROLL
      for (int step = 0; step < Rights::kSteps; ++step) {
        VRAMKIT_UNROLL
        for (int word = 0; word < 2; ++word) {
          // Eight channels of two neighbours, or sixteen of one.
          const int x = Shape::kSmall ? word : step * 16 / Shape::kGroup;
          const int from = Shape::kSmall ? k : step * 16 % Shape::kGroup + 8 * word + k;
          rights.steps[y][step][tile].words[word] = grouped_word<Shape, Rows, Columns>(
              staged, weights, channels, unit, tile, y, x, from, lane);
        }
      }
      if constexpr (Rights::kHalves == 1) {
        rights.halves[y][tile] = grouped_word<Shape, Rows, Columns>(
            staged, weights, channels, unit, tile, y, Columns::kCount - 1, k, lane);
      }
    }
  }
}

/// A convolution with every kStride-th pixel; with kStride 1 the data gradient too.
template <int kStride_>
struct GroupedForward {
  static constexpr int kStride = kStride_;
  static constexpr int kSpan = kGroupedTaps;
  using Axis = Taps<3, 0, kStride>;

  template <class Shape, class Warp>
  struct Rights {
    typename Warp::template Lanes<GroupedRights<Shape, Axis, Axis>> all;
  };

  /// Calls `f` with the taps of rows and columns, the parities of the output's pixels, and the
  /// weights.
  template <class Rights, class F>
  VRAMKIT_ON_BOTH static void for_parities(Rights& rights, const F& f) {
    f(Axis{}, Axis{}, 0, 0, rights.all);
  }
};

/// The data gradient with stride 2: the parity of a pixel of the input decides which taps reach it.
/// A window holds the output's pixels j - 1 and j for the pixels 2 j and 2 j + 1 of the padded
/// input.
struct GroupedTransposed {
  static constexpr int kStride = 1;
  static constexpr int kSpan = 2;
  using Even = Taps<2, 0, 1>;
  using Odd = Taps<1, 1, 1>;

  template <class Shape, class Warp>
  struct Rights {
    typename Warp::template Lanes<GroupedRights<Shape, Even, Even>> even;
    typename Warp::template Lanes<GroupedRights<Shape, Even, Odd>> even_odd;
    typename Warp::template Lanes<GroupedRights<Shape, Odd, Even>> odd_even;
    typename Warp::template Lanes<GroupedRights<Shape, Odd, Odd>> odd;
  };

  template <class Rights, class F>
  VRAMKIT_ON_BOTH static void for_parities(Rights& rights, const F& f) {
    f(Even{}, Even{}, 0, 0, rights.even);
    f(Even{}, Odd{}, 0, 1, rights.even_odd);
    f(Odd{}, Even{}, 1, 0, rights.odd_even);
    f(Odd{}, Odd{}, 1, 1, rights.odd);
  }
};

/// Where a window begins in the grid and in the tensor that is read.
struct GroupedOrigin {
  int image;
  int y;
  int x;
};

template <class Shape>
VRAMKIT_ON_BOTH inline GroupedOrigin grouped_origin(const GroupedPlan& plan, int window) {
  const int column = window % plan.columns;
  window /= plan.columns;
  return {window / plan.rows, window % plan.rows * Shape::kHeight, column * plan.across * kOctet};
}

/// The pixels that a window has of a tensor, and where it puts them.
template <class Bits>
struct GroupedSource {
  const Bits* image;
  int height;
  int width;
  int channels;
  int y;
  int x;
};

/// Thread `index` of kWarps warps copies its share of a window, with zeros around the image.
template <class Shape, class Map, int kWarps, class Bits>
VRAMKIT_ON_BOTH inline void stage_grouped(const GroupedSource<Bits>& source, int rows, int across,
                                          int slab, int index, Bits* staged) {
  const int width = grouped_width<Map>(across);
  for (int row = index / 32; row < rows; row += kWarps) {
    const int y = source.y + row;
    const bool row_inside = is_inside(y, source.height);
    for (int i = index % 32; i < width * Shape::kPieces; i += 32) {
      const int column = i / Shape::kPieces;
      const int piece = i % Shape::kPieces;
      const int x = source.x + column;
      const int channel = slab * Shape::kSlab + piece * 8;
      const bool inside = row_inside && is_inside(x, source.width) && channel < source.channels;
      const Bits* const from = source.image + (y * source.width + x) * source.channels + channel;
      Bits* const to =
          staged + (row * width + grouped_column<Map>(column, across)) * Shape::kPixel + piece * 8;
      copy_or_clear(to, inside ? from : source.image, inside);
    }
  }
}

template <class Type, class Shape, class Map>
VRAMKIT_ON_BOTH inline void stage_grouped_window(const GroupedPass<Type>& pass,
                                                 const GroupedPlan& plan, const GroupedOrigin& at,
                                                 int slab, int index, typename Type::Bits* staged) {
  const GroupedSlide& slide = pass.slide;
  const int64_t size = int64_t{slide.from_height} * slide.from_width * slide.channels;
  const GroupedSource<typename Type::Bits> source{pass.from + at.image * size,
                                                  slide.from_height,
                                                  slide.from_width,
                                                  slide.channels,
                                                  at.y * Map::kStride + slide.from_y,
                                                  at.x * Map::kStride + slide.from_x};
  stage_grouped<Shape, Map, kGroupedWarps>(source, grouped_height<Shape, Map>(), plan.across, slab,
                                           index, staged);
}

/// A strip: the octet and the unit of a window, and the parities of its pixels in the result.
struct GroupedStrip {
  int octet;
  int unit;
  int parity_y;
  int parity_x;
};

/// The channel of a slab that the first value of a lane belongs to, after the exchange of words.
template <class Shape>
VRAMKIT_ON_BOTH inline int lane_channel(int unit, int lane) {
  return unit * Shape::kUnit + lane % 4 * (Shape::kSmall ? 8 : 4);
}

template <class Shape>
struct GroupedSums {
  SumFragment at[Shape::kTiles];
};

/// The bias of a lane's sums, from which they begin.
template <class Type, class Shape>
VRAMKIT_ON_BOTH inline void load_grouped_bias(const GroupedPass<Type>& pass, int slab, int unit,
                                              int lane, GroupedSums<Shape>& bias) {
  VRAMKIT_UNROLL
  for (int tile = 0; tile < Shape::kTiles; ++tile) {
    const int first = slab * Shape::kSlab + unit * Shape::kUnit;
    const int channel = first + (Shape::kSmall ? tile * 8 + lane % 4 * 2 : lane % 4 * 4 + tile * 2);
    Vector<float, 2> values{};
    if (pass.bias != nullptr && channel < pass.slide.channels) {
      values = load_floats<Type, 2>(pass.bias + channel);
    }
    VRAMKIT_UNROLL
    for (int i = 0; i < 4; ++i) bias.at[tile].values[i] = values.at[i % 2];
  }
}

/// Writes a lane's part of row `y` of a strip.
template <class Type, class Shape, class Warp>
VRAMKIT_ON_BOTH inline void store_grouped(const Warp& warp, const GroupedPass<Type>& pass,
                                          const GroupedOrigin& at, int slab,
                                          const GroupedStrip& strip, int row,
                                          typename Warp::template Lanes<GroupedSums<Shape>>& sums) {
  const GroupedSlide& slide = pass.slide;
  VRAMKIT_UNROLL
  for (int part = 0; part < 2; ++part) {
    typename Warp::template Lanes<Vector<uint32_t, 4>> words;
    warp.each([&](int lane) {
      VRAMKIT_UNROLL
      for (int tile = 0; tile < Shape::kTiles; ++tile) {
        const float* const values = warp.at(sums, lane).at[tile].values + 2 * part;
        warp.at(words, lane).at[tile] =
            packed<Type>(at_least(pass.least, values[0]), at_least(pass.least, values[1]));
      }
    });
    if constexpr (Shape::kSmall) warp.transpose(words);
    warp.each([&](int lane) {
      const int grid_y = at.y + part * Shape::kRows + row;
      const int grid_x = at.x + strip.octet * kOctet + lane / 4;
      const int y = slide.to_y + grid_y * slide.to_step + strip.parity_y;
      const int x = slide.to_x + grid_x * slide.to_step + strip.parity_x;
      const int channel = slab * Shape::kSlab + lane_channel<Shape>(strip.unit, lane);
      if (!is_inside(y, slide.to_height) || !is_inside(x, slide.to_width) ||
          channel >= slide.channels) {
        return;
      }
      const int64_t pixel = (int64_t{at.image} * slide.to_height + y) * slide.to_width + x;
      auto* const to = pass.to + pixel * slide.channels + channel;
      if constexpr (Shape::kSmall) {
        *reinterpret_cast<Vector<uint32_t, 4>*>(to) = warp.at(words, lane);
      } else {
        const auto& own = warp.at(words, lane);
        *reinterpret_cast<Vector<uint32_t, 2>*>(to) = {{own.at[0], own.at[1]}};
      }
    });
  }
}

/// What a strip's row of the window contributes to a tap's row.
template <class Shape, class Columns, class Warp>
struct GroupedLefts {
  static constexpr int kSteps = kGroupedSteps<Shape, Columns>;
  static constexpr int kHalves = kGroupedHalves<Shape, Columns>;
  using Lefts = typename Warp::template Lanes<LeftFragment>;
  static constexpr int kSources = Shape::kSmall ? Shape::kTiles : 1;
  Lefts steps[kSteps == 0 ? 1 : kSteps][kSources];
  Lefts halves[Shape::kTiles / 2];

  /// `window` is where the strip's first pixel reads in this row; the second rows of a product are
  /// `below` elements further.
  template <class Map, class Bits>
  VRAMKIT_ON_BOTH void load(const Warp& warp, const Bits* window, int below, int across) {
    const auto column = [&](int tap) {
      return grouped_column<Map>(Columns::kFirst + tap, across) * Shape::kPixel;
    };
    const auto pixel = [&](int lane) {
      return window + lane % 8 * Shape::kPixel + lane / 8 % 2 * below;
    };
    VRAMKIT_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      VRAMKIT_UNROLL
      for (int source = 0; source < kSources; ++source) {
        warp.template load<false>(steps[step][source], [&](int lane) {
          if constexpr (Shape::kSmall) {
            return pixel(lane) + source * 8 + (lane < 16 ? column(0) : column(1));
          } else {
            return pixel(lane) + column(step * 16 / Shape::kGroup) + step * 16 % Shape::kGroup +
                   lane / 16 * 8;
          }
        });
      }
    }
    if constexpr (kHalves == 1) {
      VRAMKIT_UNROLL
      for (int pair = 0; pair < Shape::kTiles / 2; ++pair) {
        warp.template load<false>(halves[pair], [&](int lane) {
          return pixel(lane) + column(Columns::kCount - 1) + (2 * pair + lane / 16) * 8;
        });
      }
    }
  }
};

/// Adds a row's products with a row of taps. `tile` of the sums begins with those of tile 0.
template <class Type, class Shape, class Rows, class Columns, class Warp, class Rights>
VRAMKIT_ON_BOTH inline void multiply_grouped(
    const Warp& warp, GroupedLefts<Shape, Columns, Warp>& lefts, Rights& rights, int tap,
    typename Warp::template Lanes<GroupedSums<Shape>>& sums) {
  using Lefts = GroupedLefts<Shape, Columns, Warp>;
  VRAMKIT_UNROLL
  for (int tile = 0; tile < Shape::kTiles; ++tile) {
    typename Warp::template Lanes<SumFragment> sum;
    warp.each([&](int lane) { warp.at(sum, lane) = warp.at(sums, lane).at[tile]; });
    VRAMKIT_UNROLL
    for (int step = 0; step < Lefts::kSteps; ++step) {
      typename Warp::template Lanes<RightFragment> right;
      warp.each(
          [&](int lane) { warp.at(right, lane) = warp.at(rights, lane).steps[tap][step][tile]; });
      warp.template multiply<Type>(lefts.steps[step][Shape::kSmall ? tile : 0], right, sum);
    }
    if constexpr (Lefts::kHalves == 1) {
      typename Warp::template Lanes<uint32_t> right;
      warp.each([&](int lane) { warp.at(right, lane) = warp.at(rights, lane).halves[tap][tile]; });
      if (tile % 2 == 0) {
        warp.template multiply_half<Type, 0>(lefts.halves[tile / 2], right, sum);
      } else {
        warp.template multiply_half<Type, 1>(lefts.halves[tile / 2], right, sum);
      }
    }
    warp.each([&](int lane) { warp.at(sums, lane).at[tile] = warp.at(sum, lane); });
  }
}

/// Computes a strip. It reads each row of the window once, for all rows of taps.
template <class Type, class Shape, class Map, class Rows, class Columns, class Warp, class Rights>
VRAMKIT_ON_BOTH void convolve_strip(const Warp& warp, const GroupedPass<Type>& pass,
                                    const GroupedPlan& plan, const GroupedOrigin& at, int slab,
                                    const GroupedStrip& strip, const typename Type::Bits* staged,
                                    Rights& rights,
                                    typename Warp::template Lanes<GroupedSums<Shape>>& bias) {
  constexpr int kStride = Map::kStride;
  constexpr int kLast = Rows::kCount - 1;
  const int pitch = grouped_width<Map>(plan.across) * Shape::kPixel;
  const typename Type::Bits* const window = staged + Rows::kFirst * pitch +
                                            strip.octet * kOctet * Shape::kPixel +
                                            unit_group<Shape>(strip.unit);
  const int below = Shape::kRows * kStride * pitch;
  typename Warp::template Lanes<GroupedSums<Shape>> sums[Shape::kRows];
  VRAMKIT_UNROLL
  for (int row = 0; row <= (Shape::kRows - 1) * kStride + kLast; ++row) {
    GroupedLefts<Shape, Columns, Warp> lefts;
    lefts.template load<Map>(warp, window + row * pitch, below, plan.across);
    VRAMKIT_UNROLL
    for (int tap = 0; tap <= kLast; ++tap) {
      const int y = (row - tap) / kStride;
      if (row < tap || y >= Shape::kRows || (row - tap) % kStride != 0) continue;
      if (tap == 0) sums[y] = bias;
      multiply_grouped<Type, Shape, Rows, Columns>(warp, lefts, rights, tap, sums[y]);
      if (tap == kLast) {
        store_grouped<Type, Shape>(warp, pass, at, slab, strip, y, sums[y]);
      }
    }
  }
}

/// What a warp keeps for all windows of its block.
template <class Shape, class Map, class Warp>
struct GroupedKept {
  typename Map::template Rights<Shape, Warp> rights;
  typename Warp::template Lanes<GroupedSums<Shape>> bias;
};

/// Reads what the block has staged of the weights of a slab for warp `index`.
template <class Type, class Shape, class Map, class Warp>
VRAMKIT_ON_BOTH void keep_grouped(const Warp& warp, const GroupedPass<Type>& pass, int slab,
                                  int index, const typename Type::Bits* staged,
                                  GroupedKept<Shape, Map, Warp>& kept) {
  const int unit = index % Shape::kUnits;
  const int channels = channels_left<Shape>(pass.slide.channels, slab);
  Map::for_parities(kept.rights,
                    [&]<class Rows, class Columns>(Rows, Columns, int, int, auto& rights) {
                      warp.each([&](int lane) {
                        load_grouped_rights<Shape, Rows, Columns>(
                            staged, pass.weights, channels, unit, lane, warp.at(rights, lane));
                      });
                    });
  warp.each([&](int lane) { load_grouped_bias(pass, slab, unit, lane, warp.at(kept.bias, lane)); });
}

/// Computes the strips of warp `index` of a window.
template <class Type, class Shape, class Map, class Warp>
VRAMKIT_ON_BOTH void convolve_window(const Warp& warp, const GroupedPass<Type>& pass,
                                     const GroupedPlan& plan, const GroupedOrigin& at, int slab,
                                     int index, const typename Type::Bits* staged,
                                     GroupedKept<Shape, Map, Warp>& kept) {
  const int unit = index % Shape::kUnits;
  for (int octet = index / Shape::kUnits; octet < plan.across; octet += Shape::kTeams) {
    Map::for_parities(
        kept.rights, [&]<class Rows, class Columns>(Rows, Columns, int y, int x, auto& rights) {
          convolve_strip<Type, Shape, Map, Rows, Columns>(
              warp, pass, plan, at, slab, {octet, unit, y, x}, staged, rights, kept.bias);
        });
  }
}

}  // namespace vramkit::ops
