// The boundary to a module's C functions: what it registers is copied, zero-extended and checked once; what it returns
// is checked each time; exceptions stay on its side.
#pragma once

#include <cxxabi.h>

#include <algorithm>

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "uffda-module.h"
#include "uffda/result.h"
#include "uffda/source_registry.h"
#include "uffda/uffd_ops.h"

namespace uffda::modules {

inline constexpr std::uint64_t kMaxFolio = std::uint64_t{1} << 20U;  // bytes: a staging buffer holds one
inline constexpr std::uint32_t kMaxParallel = 64;

/// Copies a struct of a module, as large as that module knows it, and fills the rest with zeroes. Errors:
/// invalid_argument (version, size, or fields set that this host does not know).
template <typename Struct>
Result<Struct> adopt(const Struct* theirs, std::string_view kind);
Result<void> check_header(const uffda_header* theirs, std::size_t known, std::size_t least, std::string_view kind);

template <typename Struct>
Result<Struct> adopt(const Struct* theirs, std::string_view kind) {
  UFFDA_TRY_VOID(check_header(reinterpret_cast<const uffda_header*>(theirs), sizeof(Struct),
                              offsetof(Struct, name) + sizeof(const char*), kind));
  Struct ours{};
  std::memcpy(&ours, theirs, std::min<std::size_t>(theirs->header.size, sizeof ours));
  return ours;
}

/// What a source or type is, without its functions: all that another process needs to know of it.
struct SourceAbout {
  std::string name;
  std::string help;
  std::string example;
  std::vector<SourceParameterHelp> parameters;
  bool parallel = false;
  bool asynchronous = false;
};
struct TypeAbout {
  std::string name;
  std::string help;
  UffdOps ops;  ///< without get_folio
  std::uint64_t folio_size = 0;
  bool parallel = false;
  bool shareable = false;
  bool hook = false;  ///< it has get_folio; otherwise fault answers CONTINUE
};

/// Errors: invalid_argument, naming the field and the rule.
Result<SourceAbout> check_source(const uffda_source& source);
Result<TypeAbout> check_type(const uffda_memory_type& type);

/// The same rules for what came from another process.
Result<void> check_about(const SourceAbout& about);
Result<void> check_about(const TypeAbout& about);

/// The words of one call's error.
class ErrorText {
 public:
  ErrorText() : error_{UFFDA_HEADER(struct uffda_error), &ErrorText::set} {}
  ErrorText(const ErrorText&) = delete;
  ErrorText& operator=(const ErrorText&) = delete;
  ~ErrorText() = default;
  uffda_error* c_error() { return &error_; }
  [[nodiscard]] const std::string& text() const { return text_; }

 private:
  static void set(uffda_error* error, const char* text) noexcept;
  uffda_error error_;  // first: set() finds the rest from it
  std::string text_;
};

/// One line of at most UFFDA_ERROR_TEXT printable bytes.
std::string printable(const char* text);

/// An Error from what a module returned: a negative errno, and its words. A number that is no errno becomes EIO and is
/// said.
Error error_of(std::int64_t returned, const std::string& text);

/// Calls a function of a module. Errors: protocol (it threw).
template <typename Call>
Result<std::int64_t> guarded(Call&& call) {
  try {
    return static_cast<std::int64_t>(call());
  } catch (const abi::__forced_unwind&) {  // a thread that ends itself: not to be held back
    throw;
  } catch (const std::exception& error) {
    return fail(Errc::protocol, "a C++ exception left the module: " + printable(error.what()));
  } catch (...) {
    return fail(Errc::protocol, "a C++ exception left the module");
  }
}

}  // namespace uffda::modules
