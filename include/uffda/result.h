// Errors are values. `Result<T>` is what every function that can fail returns; `TRY` hands an error to the caller.
#pragma once

#include <cstdint>
#include <expected>
#include <string>
#include <string_view>
#include <utility>

namespace uffda {

/// What went wrong, as far as a caller can act on it. The set is closed; details are in the context text.
enum class Errc : std::uint8_t {
  invalid_argument,   ///< the caller's arguments are wrong; the same call will fail again
  not_found,          ///< no such thing: export, scheme, mapping, cached folio
  already_exists,     ///< it is there already
  out_of_range,       ///< outside of the object
  unsupported,        ///< this kernel, type or source cannot do it; the context says what could
  permission_denied,  ///< a privilege is missing; the context says which
  busy,               ///< in use now
  again,              ///< try again: nothing was changed
  timed_out,          ///< a deadline passed
  cancelled,          ///< given up because its owner went away
  no_memory,          ///< out of memory, descriptors, or a stated limit
  io,                 ///< a source or a file failed
  gone,               ///< the other process, its memory or the server is no more
  protocol,           ///< a peer broke the protocol
};

/// The name of a code as it is written in messages and reports.
[[nodiscard]] std::string_view to_string(Errc code) noexcept;

/// One failure: a code to act on, the errno it came from (0 if none), and words for a person.
/// Copying may allocate; an Error without context does not.
class Error {
 public:
  explicit Error(Errc code, std::string context = {}, int sys_errno = 0)
      : code_(code), sys_errno_(sys_errno), context_(std::move(context)) {}

  /// An Error from errno: the code follows from the number, the text from `what` and strerror.
  [[nodiscard]] static Error from_errno(int sys_errno, std::string_view what);

  [[nodiscard]] Errc code() const noexcept { return code_; }
  [[nodiscard]] int sys_errno() const noexcept { return sys_errno_; }
  [[nodiscard]] const std::string& context() const noexcept { return context_; }

  /// The same error with `outer` put in front of its context: "outer: context".
  [[nodiscard]] Error within(std::string_view outer) const;

  /// One line for a person.
  [[nodiscard]] std::string message() const;

 private:
  Errc code_;
  int sys_errno_;
  std::string context_;
};

template <typename T>
using Result = std::expected<T, Error>;

/// `return fail(Errc::io, "short read");`
[[nodiscard]] inline std::unexpected<Error> fail(Errc code, std::string context = {}, int sys_errno = 0) {
  return std::unexpected(Error(code, std::move(context), sys_errno));
}
[[nodiscard]] inline std::unexpected<Error> fail_errno(int sys_errno, std::string_view what) {
  return std::unexpected(Error::from_errno(sys_errno, what));
}

}  // namespace uffda

// Each use has a name of its own, so that uses nest.
#define UFFDA_CONCAT_(a, b) a##b
#define UFFDA_CONCAT(a, b) UFFDA_CONCAT_(a, b)
#define UFFDA_TRY_AS(result, ...)                        \
  __extension__({                                        \
    auto&& result = (__VA_ARGS__);                       \
    if (!result) [[unlikely]]                            \
      return std::unexpected(std::move(result).error()); \
    std::move(result).value();                           \
  })
#define UFFDA_TRY_VOID_AS(result, ...)                       \
  do {                                                       \
    if (auto&& result = (__VA_ARGS__); !result) [[unlikely]] \
      return std::unexpected(std::move(result).error());     \
  } while (false)

/// Evaluates to the value of a Result, or returns its error from the enclosing function.
#define UFFDA_TRY(...) UFFDA_TRY_AS(UFFDA_CONCAT(uffda_result_, __COUNTER__), __VA_ARGS__)
/// The same for a Result<void>.
#define UFFDA_TRY_VOID(...) UFFDA_TRY_VOID_AS(UFFDA_CONCAT(uffda_result_, __COUNTER__), __VA_ARGS__)
