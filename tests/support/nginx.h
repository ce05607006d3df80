// nginx on loopback, for tests.
#pragma once

#include <memory>
#include <string>

#include "support/child_process.h"
#include "uffda/result.h"

namespace uffda::test {

class Nginx {
 public:
  enum class Speaks : std::uint8_t { http1, https1, https2 };
  struct Options {
    std::string directory;  ///< of its own files; exists
    std::string root;       ///< what it serves
    Speaks speaks = Speaks::http1;
    std::string more{};  ///< into the server block: locations
  };
  /// Started and listening. Errors: unsupported (no nginx or openssl here), timed_out.
  static Result<std::unique_ptr<Nginx>> start(Options options);

  [[nodiscard]] std::string url() const;  ///< without a path and without a slash at its end
  /// What a source's URI needs behind '?', "cafile=..." or nothing.
  [[nodiscard]] std::string parameters() const;
  /// One line a request: protocol, serial number of the connection, status, what was asked for as a range.
  [[nodiscard]] std::string log() const;
  void kill() { process_.kill(); }
  /// Once more, on the same port. Errors: as start.
  Result<void> restart();

 private:
  Nginx(Options options, int port, ChildProcess process)
      : options_(std::move(options)), port_(port), process_(std::move(process)) {}

  Options options_;
  int port_;
  ChildProcess process_;
};

}  // namespace uffda::test
