// How sources are named and found: `scheme:rest?key=value&...`, with layers in front
// (`delay+error+file:disk.img?delay=2ms&rate=0.01`).
//
// `rest` is the scheme's own (a path, a size). One query serves the whole stack: each layer and the source take the
// parameters they know, and a parameter that nobody in the stack knows is an error that lists the known ones. In `rest`
// and in values a byte may be written as %XX; '?', '%' (and '&' in values) must be. Schemes and layers are looked up by
// name only: nothing else knows which exist.
#pragma once

#include <chrono>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "uffda/page_source.h"

namespace uffda {

/// A source's URI, taken apart and decoded.
class SourceUri {
 public:
  struct Parameter {
    std::string key;
    std::string value;
  };

  /// Threads: any. Errors: invalid_argument, naming the part that is wrong. Whether scheme, layers and parameters exist
  /// is not checked.
  static Result<SourceUri> parse(std::string_view text);

  /// Outermost first; without the '+'.
  [[nodiscard]] const std::vector<std::string>& layers() const { return layers_; }
  [[nodiscard]] const std::string& scheme() const { return scheme_; }
  /// A source that cannot be written to is opened all the same: whoever opened it finds out.
  [[nodiscard]] OpenFor what_for() const { return what_for_; }
  void set_what_for(OpenFor what_for) { what_for_ = what_for; }
  /// Takes the innermost layer as the first part of the scheme's name ("nbd+unix"). Requires: there is one.
  void merge_scheme();
  [[nodiscard]] const std::string& rest() const { return rest_; }
  [[nodiscard]] const std::vector<Parameter>& parameters() const { return parameters_; }

  /// The value of a parameter; nullptr if it was not given. The other getters return `absent` then.
  /// Errors of the others: invalid_argument, naming key and value and what would be right.
  [[nodiscard]] const std::string* find(std::string_view key) const;
  [[nodiscard]] Result<std::string> choice(std::string_view key, std::initializer_list<std::string_view> allowed,
                                           std::string_view absent) const;
  [[nodiscard]] Result<std::uint64_t> number(std::string_view key, std::uint64_t absent) const;
  /// A probability, 0 to 1.
  [[nodiscard]] Result<double> fraction(std::string_view key, double absent) const;
  [[nodiscard]] Result<std::chrono::nanoseconds> duration(std::string_view key, std::chrono::nanoseconds absent) const;
  /// START-END: sizes, END exclusive. Empty if it was not given.
  [[nodiscard]] Result<std::optional<ByteRange>> range(std::string_view key) const;

 private:
  std::vector<std::string> layers_;
  std::string scheme_;
  std::string rest_;
  std::vector<Parameter> parameters_;
  OpenFor what_for_ = OpenFor::reading;
};

/// A number of bytes as people write it: 4096, 64K, 1M, 2GiB, 1T (K is 1024). Errors: invalid_argument, out_of_range.
Result<ByteCount> parse_size(std::string_view text);
/// 250us, 2ms, 1.5s, 100ns, 1m. The unit is required unless the number is 0. Errors: invalid_argument, out_of_range.
Result<std::chrono::nanoseconds> parse_duration(std::string_view text);

struct SourceParameterHelp {
  std::string key;
  std::string help;  ///< one line: values and default
};

/// How something is stored.
struct StoreOptions {
  ByteCount size;
  bool replace = false;  ///< what has the name now is replaced, once finish() succeeds; else it is an error
};

/// Stores bytes under a name that a source opens later: what `uffda put` writes through. Dropped before finish() has
/// succeeded, it leaves nothing under that name that could be taken for the whole.
/// Threads: one at a time.
class SourceWriter {
 public:
  virtual ~SourceWriter() = default;
  /// Offsets grow from call to call; what is left out reads as zeroes. Errors: io, no_memory (no room), timed_out.
  virtual Result<void> write(ByteOffset offset, std::span<const std::byte> bytes) = 0;
  /// Everything is stored for good, and the name shows it. Called once, last. Errors: as write; already_exists,
  /// busy (somebody else stored under that name meanwhile).
  virtual Result<void> finish() = 0;
};

/// A kind of source.
struct SourceScheme {
  std::string name;    ///< [a-z][a-z0-9.-]*; also two of them with a '+' between: nbd+unix
  std::string syntax;  ///< "file:PATH"
  std::string help;    ///< one line
  std::vector<SourceParameterHelp> parameters;
  std::function<Result<std::unique_ptr<PageSource>>(const SourceUri&)> open;
  /// Instead of `parameters`, if what a source takes depends on the URI; null if it does not.
  std::function<std::vector<SourceParameterHelp>(const SourceUri&)> parameters_of;
  /// Makes `size` bytes of that name, to be written; null: this kind is read only. Errors: as open; already_exists.
  std::function<Result<std::unique_ptr<SourceWriter>>(const SourceUri&, const StoreOptions&)> create;
};

/// A kind of source that stands in front of another one.
struct SourceLayer {
  std::string name;
  std::string help;
  std::vector<SourceParameterHelp> parameters;
  std::function<Result<std::unique_ptr<PageSource>>(std::unique_ptr<PageSource> inner, const SourceUri&)> wrap;
};

/// Adds a scheme that open_source() then knows. Threads: any. Errors: already_exists, invalid_argument (bad name, no
/// factory).
Result<void> register_source(SourceScheme scheme);
Result<void> register_source_layer(SourceLayer layer);

/// Makes what a URI names, for a source to be opened by the same URI later. Layers are not taken.
/// Errors: invalid_argument, not_found (unknown scheme), unsupported (nothing can be stored there), and the scheme's.
Result<std::unique_ptr<SourceWriter>> create_source(std::string_view uri, const StoreOptions& options);

/// Takes a URI apart with the names of the registered schemes in mind, which may have a '+' in them. Whether the scheme
/// is known is not checked. Errors: as SourceUri::parse.
Result<SourceUri> parse_source_uri(std::string_view uri);

/// All that are registered now, by name, for help texts.
std::vector<SourceScheme> source_schemes();
std::vector<SourceLayer> source_layers();

}  // namespace uffda
