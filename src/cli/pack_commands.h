// pack, unpack, inspect and verify: what they take, and what they do.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "uffda/result.h"
#include "uffda/units.h"

namespace CLI {  // NOLINT(readability-identifier-naming): the name is that of the library CLI11
class App;
}

namespace uffda::cli {

struct PackCommand {
  std::string input;  ///< a path or a URI
  std::string output;
  std::optional<ByteCount> frame;  ///< absent: the base's, else the default
  int level = 3;
  std::string base;                                           ///< empty: none
  std::string working_set;                                    ///< a recording to keep in the pack; empty: none
  std::vector<std::pair<std::string, std::string>> metadata;  ///< KEY, VALUE
};

/// Puts a recording into a pack that is there.
struct AttachCommand {
  std::string pack;
  std::string working_set;
};

struct UnpackCommand {
  std::string pack;
  std::string output;
};

struct InspectCommand {
  std::string pack;
  bool json = false;
  bool map = false;
};

struct VerifyCommand {
  std::string pack;
};

/// Their words and option values as they were written.
struct PackTexts {
  std::vector<std::string> words;
  std::string frame, level = "3", base, working_set, criu;
  std::vector<std::string> metadata;
  bool json = false, map = false;
};

void add_pack_commands(CLI::App& root, PackTexts& texts);
/// Errors: invalid_argument: what to write instead.
Result<PackCommand> pack_command(const PackTexts& texts);
/// `pack --working-set FILE PACK`.
bool is_attach(const PackTexts& texts);
/// Errors: invalid_argument: options of a pack that is made.
Result<AttachCommand> attach_command(const PackTexts& texts);
Result<UnpackCommand> unpack_command(const PackTexts& texts);
Result<InspectCommand> inspect_command(const PackTexts& texts);
Result<VerifyCommand> verify_command(const PackTexts& texts);

/// Each returns the exit status, or why it failed. Interrupted (SIGINT, SIGTERM) they leave nothing behind.
Result<int> run_pack(const PackCommand& command);
Result<int> run_attach(const AttachCommand& command);
Result<int> run_unpack(const UnpackCommand& command);
Result<int> run_inspect(const InspectCommand& command);
Result<int> run_verify(const VerifyCommand& command);

}  // namespace uffda::cli
