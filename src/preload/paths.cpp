#include "preload/paths.h"

#include <fcntl.h>
#include <limits.h>  // NOLINT(modernize-deprecated-headers)
#include <stdlib.h>  // NOLINT(modernize-deprecated-headers)
#include <string.h>  // NOLINT(modernize-deprecated-headers)
#include <sys/stat.h>

#include "preload/config.h"
#include "preload/kernel.h"

namespace uffda::shim {
namespace {

struct Rule {
  char asked[PATH_MAX];  // absolute, without "." and ".." and double slashes
  char real[PATH_MAX];
  const char* name;  // the last part of `asked`
};

constinit Rule g_rules[kMaxMaps]{};
constinit int g_count = 0;

const char* last_part(const char* path) {
  const char* slash = strrchr(path, '/');
  return slash == nullptr ? path : slash + 1;
}

// Appends `path` to the absolute `to` part by part, "." and ".." resolved by their letters. False: too long.
bool append_parts(char (&to)[PATH_MAX], const char* path) {
  size_t size = strlen(to);
  while (*path != 0) {
    const size_t length = strcspn(path, "/");
    if (length == 2 && path[0] == '.' && path[1] == '.') {
      while (size > 0 && to[size] != '/') --size;
      to[size] = 0;
    } else if (length > 0 && (length != 1 || path[0] != '.')) {
      if (size + length + 2 > sizeof to) return false;
      to[size++] = '/';
      memcpy(to + size, path, length);
      size += length;
      to[size] = 0;
    }
    path += length;
    path += *path == '/' ? 1 : 0;
  }
  return true;
}

// The absolute name of what `path` is relative to; "" for the root.
bool base_of(int directory, char (&to)[PATH_MAX]) {
  char link[32] = "/proc/self/cwd";
  if (directory != AT_FDCWD) {
    char digits[12];
    size_t count = 0;
    for (int rest = directory; count == 0 || rest > 0; rest /= 10) digits[count++] = (char)('0' + rest % 10);
    memcpy(link, "/proc/self/fd/", 15);
    char* end = link + 14;
    while (count > 0) *end++ = digits[--count];
    *end = 0;
  }
  const long size = kernel(SYS_readlinkat, AT_FDCWD, link, to, sizeof to - 1);
  if (size <= 0 || to[0] != '/') return false;
  to[size == 1 ? 0 : size] = 0;
  return true;
}

bool same_name(int directory, const char* path, const Rule& rule) {
  char name[PATH_MAX] = "";
  if (path[0] != '/' && (directory < 0 && directory != AT_FDCWD)) return false;
  if (path[0] != '/' && !base_of(directory, name)) return false;
  return append_parts(name, path) && strcmp(name, rule.asked) == 0;
}

// The directory of `path`, or false if there is none.
bool stat_parent(int directory, const char* path, struct stat& status) {
  char parent[PATH_MAX] = ".";
  const auto length = (size_t)(last_part(path) - path);
  if (length >= sizeof parent) return false;
  if (length > 0) {
    memcpy(parent, path, length);
    parent[length] = 0;
  }
  return kernel(SYS_newfstatat, directory, parent, &status, 0) == 0;
}

// By the directory, through whatever links it is named; by its letters only where there is no such directory.
bool matches(int directory, const char* path, const Rule& rule) {
  struct stat here;
  struct stat there;
  if (!stat_parent(directory, path, here)) return same_name(directory, path, rule);
  return stat_parent(AT_FDCWD, rule.asked, there) && here.st_dev == there.st_dev && here.st_ino == there.st_ino;
}

const Rule* find_rule(int directory, const char* path) {
  if (g_count == 0 || path == nullptr || *path == 0) return nullptr;
  const char* name = last_part(path);
  for (int i = 0; i < g_count; ++i) {
    const Rule& rule = g_rules[i];
    if (strcmp(name, rule.name) != 0) continue;
    if (matches(directory, path, rule)) return &rule;
  }
  return nullptr;
}

// One "asked=real" from `text`, which is moved behind it and its semicolon.
bool parse_rule(const char*& text, Rule& rule) {
  const char* equal = strchr(text, '=');
  if (equal == nullptr || *text != '/' || equal[1] != '/') return false;
  char asked[PATH_MAX];
  const auto asked_length = (size_t)(equal - text);
  const size_t real_length = strcspn(equal + 1, ";");
  if (asked_length >= sizeof asked || real_length >= sizeof rule.real) return false;
  memcpy(asked, text, asked_length);
  asked[asked_length] = 0;
  if (!append_parts(rule.asked, asked) || rule.asked[0] == 0) return false;
  memcpy(rule.real, equal + 1, real_length);
  rule.name = last_part(rule.asked);
  text = equal + 1 + real_length;
  if (*text == ';') ++text;
  return true;
}

}  // namespace

void read_path_environment() {
  const char* text = secure_getenv("UFFDA_SHIM_PATHS");
  if (text == nullptr) return;
  int count = 0;
  while (*text != 0 && count < kMaxMaps) {
    if (!parse_rule(text, g_rules[count])) {
      static constinit bool said = false;
      say_once(said, "UFFDA_SHIM_PATHS is malformed: its files are not found under the names asked for");
      break;
    }
    ++count;
  }
  g_count = count;
}

const char* real_path(int directory, const char* path) {
  const Rule* rule = find_rule(directory, path);
  return rule == nullptr ? path : rule->real;
}

const char* asked_path(int directory, const char* path) {
  const Rule* rule = find_rule(directory, path);
  return rule == nullptr ? nullptr : rule->asked;
}

}  // namespace uffda::shim
