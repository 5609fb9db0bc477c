#pragma once

#include <heed/pattern/pattern.hpp>

#include <cstddef>
#include <memory>
#include <new>
#include <type_traits>

namespace heed {

/// A bound pattern of any type. The engines see patterns this way, a few calls a tile, so that they are
/// compiled once for all of them.
class bound_any_pattern {
 public:
  /// Holds what `make()` returns: in place, or on the heap if it is large.
  template <class Make>
    requires bound_pattern<std::invoke_result_t<Make>>
  explicit bound_any_pattern(Make&& make) {
    using model_type = model<std::invoke_result_t<Make>>;
    if constexpr (sizeof(model_type) <= capacity && alignof(model_type) <= alignment)
      pattern_ = new (memory_) model_type(make);
    else
      pattern_ = new model_type(make);
  }
  bound_any_pattern(bound_any_pattern const&) = delete;
  bound_any_pattern& operator=(bound_any_pattern const&) = delete;
  ~bound_any_pattern() {
    if (static_cast<void const*>(pattern_) == memory_)
      pattern_->~interface();
    else
      delete pattern_;
  }

  bool keep(index_t query, index_t key) const { return pattern_->keep(query, key); }
  interval_set keys(interval queries, index_t count) const {
    return pattern_->keys(queries, count);
  }
  coverage cover(interval queries, interval keys) const { return pattern_->cover(queries, keys); }
  void mask(std::span<index_t const> queries, interval keys, std::uint64_t* rows) const {
    pattern_->mask(queries, keys, rows);
  }
  bool scattered() const { return pattern_->scattered(); }
  interval next_keys(interval queries, index_t from, index_t count) const {
    return pattern_->next_keys(queries, from, count);
  }
  std::size_t list_keys(interval queries, index_t from, index_t count,
                        std::span<interval> runs) const {
    return pattern_->list_keys(queries, from, count, runs);
  }
  void mask_runs(std::span<index_t const> queries, std::span<interval const> runs,
                 std::uint64_t* rows) const {
    pattern_->mask_runs(queries, runs, rows);
  }

 private:
  struct interface {
    virtual ~interface() = default;
    virtual bool keep(index_t, index_t) const = 0;
    virtual interval_set keys(interval, index_t) const = 0;
    virtual coverage cover(interval, interval) const = 0;
    virtual void mask(std::span<index_t const>, interval, std::uint64_t*) const = 0;
    virtual bool scattered() const = 0;
    virtual interval next_keys(interval, index_t, index_t) const = 0;
    virtual std::size_t list_keys(interval, index_t, index_t, std::span<interval>) const = 0;
    virtual void mask_runs(std::span<index_t const>, std::span<interval const>,
                           std::uint64_t*) const = 0;
  };

  template <class P>
  struct model final : interface {
    P pattern;

    template <class Make>
    explicit model(Make& make) : pattern(make()) {}
    bool keep(index_t query, index_t key) const override { return pattern.keep(query, key); }
    interval_set keys(interval queries, index_t count) const override {
      return pattern_keys(pattern, queries, count);
    }
    coverage cover(interval queries, interval keys) const override {
      return pattern_cover(pattern, queries, keys);
    }
    void mask(std::span<index_t const> queries, interval keys, std::uint64_t* rows) const override {
      pattern_mask(pattern, queries, keys, rows);
    }
    bool scattered() const override { return is_scattered(pattern); }
    interval next_keys(interval queries, index_t from, index_t count) const override {
      return next_run(pattern, queries, from, count);
    }
    std::size_t list_keys(interval queries, index_t from, index_t count,
                          std::span<interval> runs) const override {
      return list_runs(pattern, queries, from, count, runs);
    }
    void mask_runs(std::span<index_t const> queries, std::span<interval const> runs,
                   std::uint64_t* rows) const override {
      heed::mask_runs(pattern, queries, runs, rows);
    }
  };

  static constexpr std::size_t capacity = 384, alignment = alignof(std::max_align_t);
  alignas(alignment) std::byte memory_[capacity];
  interface* pattern_;
};

/// A pattern that is chosen at run time: by name, from a table, another one for each layer.
///
///     heed::any_pattern p = local ? heed::any_pattern(heed::sliding_window{.left = 255, .right = 0})
///                                 : heed::any_pattern(heed::causal{});
///
/// It holds a copy, shared by its own copies; what the pattern points to stays the caller's.
class any_pattern {
 public:
  template <pattern P>
    requires(!std::same_as<P, any_pattern>)
  any_pattern(P const& p) : pattern_(std::make_shared<model<P>>(p)) {}

  bound_any_pattern bind(place const& where) const { return pattern_->bind(where); }
  void check(call_shape const& shape) const { pattern_->check(shape); }
  index_t panel_rows() const { return pattern_->panel_rows(); }

 private:
  struct interface {
    virtual ~interface() = default;
    virtual bound_any_pattern bind(place const&) const = 0;
    virtual void check(call_shape const&) const = 0;
    virtual index_t panel_rows() const = 0;
  };

  template <class P>
  struct model final : interface {
    P pattern;

    explicit model(P const& p) : pattern(p) {}
    bound_any_pattern bind(place const& where) const override {
      return bound_any_pattern([&] { return bind_at(pattern, where); });
    }
    void check(call_shape const& shape) const override { check_against(pattern, shape); }
    index_t panel_rows() const override { return panel_rows_of(pattern); }
  };

  std::shared_ptr<interface const> pattern_;
};

}  // namespace heed
