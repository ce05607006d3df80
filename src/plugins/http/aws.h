// Keys, profile and region as Amazon's tools find them.
#pragma once

#include <string>

#include "plugins/http/target.h"

namespace uffda::sources::http {

/// A file of at most 1 MiB. Errors: what open and read say; invalid_argument (it is larger).
Result<std::string> read_small_file(const std::string& path);

/// AWS_REGION, AWS_DEFAULT_REGION, the profile's in ~/.aws/config (AWS_CONFIG_FILE), else us-east-1. Here and below an
/// empty `given` is that of AWS_PROFILE, else "default". Errors: invalid_argument (that file is none).
Result<std::string> aws_region(const std::string& given);
/// AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, unless a profile is given; else the profile in
/// ~/.aws/credentials (AWS_SHARED_CREDENTIALS_FILE). Errors: permission_denied (there are none), invalid_argument.
Result<Credentials> aws_credentials(const std::string& given);

}  // namespace uffda::sources::http
