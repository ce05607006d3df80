// A set of bits of one enum class, so that tests and unions of flags cannot be misread.
#pragma once

#include <initializer_list>
#include <type_traits>

namespace uffda {

/// A set of enumerators of E, each of which is one bit.
template <typename E>
class Flags {
 public:
  using Bits = std::underlying_type_t<E>;

  constexpr Flags() = default;
  constexpr Flags(E flag) : bits_(static_cast<Bits>(flag)) {}  // NOLINT(google-explicit-constructor): a flag is a set
  constexpr Flags(std::initializer_list<E> flags) {
    for (E flag : flags) bits_ |= static_cast<Bits>(flag);
  }
  static constexpr Flags from_bits(Bits bits) {
    Flags flags;
    flags.bits_ = bits;
    return flags;
  }

  [[nodiscard]] constexpr bool has(E flag) const { return (bits_ & static_cast<Bits>(flag)) != 0; }
  [[nodiscard]] constexpr bool has_all(Flags other) const { return (bits_ & other.bits_) == other.bits_; }
  [[nodiscard]] constexpr bool has_any(Flags other) const { return (bits_ & other.bits_) != 0; }
  [[nodiscard]] constexpr bool empty() const { return bits_ == 0; }
  [[nodiscard]] constexpr Bits bits() const { return bits_; }

  friend constexpr Flags operator|(Flags a, Flags b) { return from_bits(a.bits_ | b.bits_); }
  friend constexpr Flags operator&(Flags a, Flags b) { return from_bits(a.bits_ & b.bits_); }
  friend constexpr bool operator==(Flags, Flags) = default;

 private:
  Bits bits_ = 0;
};

}  // namespace uffda
