#include "plugins/http/aws.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "os/fd.h"
#include "sources/http/ini.h"

namespace uffda::sources::http {
namespace {

constexpr std::size_t kMaxFileBytes = std::size_t{1} << 20U;

std::string file_of(const char* variable, const char* in_home) {
  std::string given = environment(variable);
  return given.empty() ? environment("HOME") + in_home : given;
}

std::string credentials_file() { return file_of("AWS_SHARED_CREDENTIALS_FILE", "/.aws/credentials"); }

/// Empty also where there is no such file.
Result<IniSection> section_of(const std::string& path, const std::string& name) {
  const auto text = read_small_file(path);
  if (!text && text.error().code() == Errc::not_found) return IniSection{};
  if (!text) return std::unexpected(text.error());
  auto section = read_ini_section(*text, name);
  if (!section) return std::unexpected(section.error().within(path));
  return section;
}

std::string default_profile() {
  std::string profile = environment("AWS_PROFILE");
  return profile.empty() ? "default" : profile;
}

std::string value_of(const IniSection& section, std::string_view key) {
  const auto found = section.find(key);
  return found == section.end() ? "" : found->second;
}

}  // namespace

Result<std::string> read_small_file(const std::string& path) {
  const os::UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
  if (!fd) return fail_errno(errno, path);
  std::string text(kMaxFileBytes + 1, '\0');
  std::size_t filled = 0;
  while (filled < text.size()) {
    const ssize_t got = ::read(fd.get(), text.data() + filled, text.size() - filled);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno(errno, path);
    if (got == 0) break;
    filled += static_cast<std::size_t>(got);
  }
  if (filled > kMaxFileBytes) return fail(Errc::invalid_argument, path + ": is larger than 1 MiB");
  text.resize(filled);
  return text;
}

Result<std::string> aws_region(const std::string& given) {
  for (const char* const variable : {"AWS_REGION", "AWS_DEFAULT_REGION"}) {
    if (std::string region = environment(variable); !region.empty()) return region;
  }
  const std::string profile = given.empty() ? default_profile() : given;
  const std::string name = profile == "default" ? profile : "profile " + profile;
  const IniSection section = UFFDA_TRY(section_of(file_of("AWS_CONFIG_FILE", "/.aws/config"), name));
  std::string region = value_of(section, "region");
  return region.empty() ? "us-east-1" : region;
}

Result<Credentials> aws_credentials(const std::string& given) {
  Credentials keys{.user = environment("AWS_ACCESS_KEY_ID"),
                   .password = environment("AWS_SECRET_ACCESS_KEY"),
                   .session = environment("AWS_SESSION_TOKEN"),
                   .bearer = {}};
  if (given.empty() && !keys.user.empty() && !keys.password.empty()) return keys;
  const std::string profile = given.empty() ? default_profile() : given;
  const std::string path = credentials_file();
  const IniSection section = UFFDA_TRY(section_of(path, profile));
  keys = {.user = value_of(section, "aws_access_key_id"),
          .password = value_of(section, "aws_secret_access_key"),
          .session = value_of(section, "aws_session_token"),
          .bearer = {}};
  if (!keys.user.empty() && !keys.password.empty()) return keys;
  return fail(Errc::permission_denied,
              fmt::format("no keys: neither AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are set nor has {} a profile "
                          "[{}] with them; a public object needs anonymous=on",
                          path, profile));
}

}  // namespace uffda::sources::http
