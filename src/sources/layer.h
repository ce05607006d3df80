// Base of the layers: a source in front of another one, which it owns.
#pragma once

#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "uffda/page_source.h"

namespace uffda::sources {

/// Passes everything on except the fetches, which are the layer's business. Writes are passed on too: a layer that
/// cannot have that says that it is not writable. Properties are the inner source's unless
/// the layer changes them.
class Layer : public PageSource {
 protected:
  explicit Layer(std::unique_ptr<PageSource> inner) : inner_(std::move(inner)) {}

  [[nodiscard]] PageSource& inner() { return *inner_; }
  /// Destroys the inner source, which answers every ticket. For destructors of layers whose members hear those answers.
  void close_inner() { inner_.reset(); }

 private:
  Result<std::vector<Extent>> do_extents(ByteRange range) override { return inner_->extents(range); }
  void do_write_back(WriteTicket ticket) noexcept override { inner_->write_back(std::move(ticket)); }
  Result<void> do_flush() override { return inner_->flush(); }
  Result<void> do_reserve(ByteRange range) override { return inner_->reserve(range); }
  Result<void> do_resize(ByteCount length) override { return inner_->resize(length); }
  Result<std::vector<std::byte>> do_working_set() override { return inner_->working_set(); }
  void do_set_arena(std::span<std::byte> arena) override { inner_->set_arena(arena); }
  void do_attach(std::shared_ptr<PageSink> sink) override { inner_->attach(std::move(sink)); }

  std::unique_ptr<PageSource> inner_;
};

/// A number that looks random and follows from `value` alone (the finalizer of SplitMix64, Steele et al., OOPSLA 2014).
constexpr std::uint64_t mixed(std::uint64_t value) {
  value += 0x9e3779b97f4a7c15U;
  value = (value ^ (value >> 30U)) * 0xbf58476d1ce4e5b9U;
  value = (value ^ (value >> 27U)) * 0x94d049bb133111ebU;
  return value ^ (value >> 31U);
}
/// The same as a fraction in [0, 1).
constexpr double mixed_fraction(std::uint64_t value) { return static_cast<double>(mixed(value) >> 11U) * 0x1p-53; }

}  // namespace uffda::sources
