#include "modules/abi.h"

#include <fmt/format.h>

#include <algorithm>

#include "mm/memory_type.h"

namespace uffda::modules {
namespace {

constexpr std::int64_t kMaxErrno = 4095;
constexpr std::size_t kMaxParameters = 64;
constexpr std::uint64_t kModes = UFFDA_MODE_MISSING | UFFDA_MODE_WP | UFFDA_MODE_MINOR;
constexpr std::uint64_t kIoctls = UFFDA_IOCTL_COPY | UFFDA_IOCTL_ZEROPAGE | UFFDA_IOCTL_MOVE |
                                  UFFDA_IOCTL_WRITEPROTECT | UFFDA_IOCTL_CONTINUE | UFFDA_IOCTL_POISON;

bool valid_name(const char* name) {
  if (name == nullptr) return false;
  const std::size_t length = ::strnlen(name, UFFDA_NAME_LENGTH + 1);
  const std::string_view text(name, length);
  const auto letter = [](char c) { return c >= 'a' && c <= 'z'; };
  return length >= 1 && length <= UFFDA_NAME_LENGTH && letter(text.front()) && std::ranges::all_of(text, [&](char c) {
           return letter(c) || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
         });
}

bool valid_folio(std::uint64_t bytes) {
  return bytes >= kPageSize.value && bytes <= kMaxFolio && (bytes & (bytes - 1)) == 0;
}

std::unexpected<Error> refuse(std::string text) { return fail(Errc::invalid_argument, std::move(text)); }

Result<void> check_common(std::uint32_t thread_model, std::uint32_t flags) {
  if (thread_model > UFFDA_PARALLEL) return refuse(fmt::format("thread_model is {}", thread_model));
  if (flags != 0) return refuse(fmt::format("flags are {:#x}, and this host knows none", flags));
  return {};
}

template <typename Function>
Result<void> require(Function function, std::string_view name) {
  if (function != nullptr) return {};
  return refuse(fmt::format("{} is null", name));
}

Result<void> check_parameters(const uffda_parameter* list, SourceAbout& about) {
  for (std::size_t i = 0; list != nullptr && list[i].key != nullptr; ++i) {
    if (i == kMaxParameters) return refuse("parameters do not end with a null key");
    if (!valid_name(list[i].key)) return refuse(fmt::format("parameter {} has no valid key", i + 1));
    about.parameters.push_back({.key = list[i].key, .help = printable(list[i].help)});
  }
  return {};
}

}  // namespace

Result<void> check_header(const uffda_header* theirs, std::size_t known, std::size_t least, std::string_view kind) {
  if (theirs == nullptr) return refuse(fmt::format("a null {} was registered", kind));
  if (theirs->version != UFFDA_MODULE_VERSION) {
    return refuse(fmt::format("its {} is of interface version {}, and this host knows version {}", kind,
                              theirs->version, UFFDA_MODULE_VERSION));
  }
  if (theirs->size < least || theirs->size > std::size_t{1} << 16U)
    return refuse(fmt::format("its {} says that it has {} bytes", kind, theirs->size));
  const auto* bytes = reinterpret_cast<const unsigned char*>(theirs);
  if (theirs->size > known && std::any_of(bytes + known, bytes + theirs->size, [](unsigned char b) { return b != 0; }))
    return refuse(fmt::format("its {} uses fields that this host does not know: a newer uffda is needed", kind));
  return {};
}

std::string printable(const char* text) {
  if (text == nullptr) return {};
  std::string line(text, ::strnlen(text, UFFDA_ERROR_TEXT + 1));
  const bool cut = line.size() > UFFDA_ERROR_TEXT;
  if (cut) line.resize(UFFDA_ERROR_TEXT);
  std::ranges::replace_if(line, [](char c) { return static_cast<unsigned char>(c) < ' ' || c == '\x7f'; }, ' ');
  return cut ? line + " (cut)" : line;
}

Result<SourceAbout> check_source(const uffda_source& source) {
  if (!valid_name(source.name)) return refuse("a source has no valid name: [a-z][a-z0-9._-]*, at most 63 bytes");
  SourceAbout about{.name = source.name,
                    .help = printable(source.help),
                    .example = printable(source.example),
                    .parameters = {},
                    .parallel = source.thread_model == UFFDA_PARALLEL,
                    .asynchronous = source.fetch_async != nullptr};
  const auto checked = [&]() -> Result<void> {
    UFFDA_TRY_VOID(check_common(source.thread_model, source.flags));
    UFFDA_TRY_VOID(check_parameters(source.parameters, about));
    UFFDA_TRY_VOID(require(source.open, "open"));
    UFFDA_TRY_VOID(require(source.close, "close"));
    UFFDA_TRY_VOID(require(source.properties, "properties"));
    if (source.fetch_async == nullptr) UFFDA_TRY_VOID(require(source.fetch, "fetch (and fetch_async)"));
    return {};
  }();
  if (!checked) return std::unexpected(checked.error().within("source " + about.name));
  return about;
}

Result<TypeAbout> check_type(const uffda_memory_type& type) {
  if (!valid_name(type.name)) return refuse("a memory type has no valid name: [a-z][a-z0-9._-]*, at most 63 bytes");
  TypeAbout about{.name = type.name,
                  .help = printable(type.help),
                  .ops = {.modes = UffdModes::from_bits(type.modes), .ioctls = UffdIoctls::from_bits(type.ioctls)},
                  .folio_size = type.folio_size,
                  .parallel = type.thread_model == UFFDA_PARALLEL,
                  .shareable = type.share != nullptr,
                  .hook = type.get_folio != nullptr};
  const auto checked = [&]() -> Result<void> {
    UFFDA_TRY_VOID(check_common(type.thread_model, type.flags));
    if ((type.modes & ~kModes) != 0 || (type.ioctls & ~kIoctls) != 0)
      return refuse(
          fmt::format("modes {:#x} or ioctls {:#x} have bits that this host does not know", type.modes, type.ioctls));
    if (!valid_folio(type.folio_size))
      return refuse(fmt::format("folio_size is {}: a power of two from 4096 to 1 MiB is needed", type.folio_size));
    UFFDA_TRY_VOID(require(type.create, "create"));
    UFFDA_TRY_VOID(require(type.destroy, "destroy"));
    UFFDA_TRY_VOID(require(type.publish, "publish"));
    UFFDA_TRY_VOID(require(type.drop, "drop"));
    UFFDA_TRY_VOID(require(type.read, "read"));
    UFFDA_TRY_VOID(require(type.mapping, "mapping"));
    if ((type.ioctls & UFFDA_IOCTL_CONTINUE) == 0) {
      return type.get_folio == nullptr ? Result<void>{} : refuse("get_folio needs CONTINUE");
    }
    UFFDA_TRY_VOID(require(type.release, "release, which CONTINUE needs,"));
    return type.get_folio != nullptr || type.fault != nullptr ? Result<void>{}
                                                              : refuse("CONTINUE needs get_folio or fault");
  }();
  if (!checked) return std::unexpected(checked.error().within("memory type " + about.name));
  if (auto valid = validate(about.ops); !valid)
    return std::unexpected(valid.error().within("memory type " + about.name));
  return about;
}

Result<void> check_about(const SourceAbout& about) {
  if (!valid_name(about.name.c_str())) return refuse("a source has no valid name");
  const bool keys = std::ranges::all_of(about.parameters, [](const auto& one) { return valid_name(one.key.c_str()); });
  return keys ? Result<void>{} : refuse(fmt::format("source {}: a parameter has no valid key", about.name));
}

Result<void> check_about(const TypeAbout& about) {
  if (!valid_name(about.name.c_str())) return refuse("a memory type has no valid name");
  const bool known = (about.ops.modes.bits() & ~kModes) == 0 && (about.ops.ioctls.bits() & ~kIoctls) == 0;
  if (!known || !valid_folio(about.folio_size)) return refuse(fmt::format("memory type {}: a bad table", about.name));
  return validate(about.ops);
}

void ErrorText::set(uffda_error* error, const char* text) noexcept {
  if (error != nullptr) reinterpret_cast<ErrorText*>(error)->text_ = printable(text);
}

Error error_of(std::int64_t returned, const std::string& text) {
  const bool errno_value = returned < 0 && returned >= -kMaxErrno;
  if (!errno_value)
    return Error(Errc::protocol, fmt::format("it returned {}, which is no errno{}{}", returned,
                                             text.empty() ? "" : ", and said: ", text));
  const int number = static_cast<int>(-returned);
  return Error::from_errno(number, text.empty() ? "the module failed" : text);
}

}  // namespace uffda::modules
