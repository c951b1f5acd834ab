#include "config_value.h"

#include "address.h"
#include "confine.h"
#include "systemd.h"
#include "units.h"

#include <assert.h>
#include <errno.h>
#include <grp.h>
#include <inttypes.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MODE_MOST 0777

static int
no_memory(struct failure *why)
{
	return failure_set(why, FAILURE_MEMORY, "no memory for this value; free some");
}

/* ------------------------------------------------------------------ amounts */

static int
parse_amount(enum keyword_type type, const char *text, uint64_t *out, struct failure *why)
{
	switch (type) {
	case KEYWORD_COUNT:
	case KEYWORD_COUNTS:
		return units_parse_count(text, out, why);
	case KEYWORD_DURATION:
		return units_parse_duration(text, out, why);
	case KEYWORD_SIZE:
		return units_parse_size(text, out, why);
	default:
		assert(type == KEYWORD_RATE);
		return units_parse_rate(text, out, why);
	}
}

static const char *
format_amount(enum keyword_type type, uint64_t amount, char text[UNITS_TEXT])
{
	switch (type) {
	case KEYWORD_DURATION:
		return units_format_duration(amount, text);
	case KEYWORD_SIZE:
		return units_format_bytes(amount, text);
	case KEYWORD_RATE:
		return units_format_rate(amount, text);
	default:
		snprintf(text, UNITS_TEXT, "%" PRIu64, amount);
		return text;
	}
}

static bool
is_amount(enum keyword_type type)
{
	return type == KEYWORD_COUNT || type == KEYWORD_COUNTS || type == KEYWORD_DURATION ||
	       type == KEYWORD_SIZE || type == KEYWORD_RATE;
}

static bool
is_default(const struct keyword *row, uint64_t amount)
{
	uint64_t fallback;
	return row->fallback && *row->fallback &&
	       parse_amount(row->type, row->fallback, &fallback, NULL) == 0 && amount == fallback;
}

static int
store_amount(const struct keyword *row, const char *text, uint64_t *slot, struct failure *why)
{
	uint64_t amount;
	char range[CONFIG_VALUE_RANGE];
	if (parse_amount(row->type, text, &amount, why))
		return -1;
	if ((amount < row->least || amount > row->most) && !is_default(row, amount))
		return failure_set(why, FAILURE_CONFIG, "'%.60s' is out of range; write %s", text,
				   config_value_range(row, range));
	*slot = amount;
	return 0;
}

static int
store_count(const struct keyword *row, const char *text, struct count_list *list,
	    struct failure *why)
{
	uint64_t *at = reallocarray(list->at, list->count + 1, sizeof(*at));
	if (!at)
		return no_memory(why);
	list->at = at;
	if (store_amount(row, text, &at[list->count], why))
		return -1;
	list->count++;
	return 0;
}

/* ------------------------------------------------------------------ words */

static int
store_flag(const char *text, bool *slot, struct failure *why)
{
	bool is_true = strcmp(text, "true") == 0;
	if (!is_true && strcmp(text, "false") != 0)
		return failure_set(why, FAILURE_CONFIG,
				   "'%.60s' is neither true nor false; write one of them", text);
	*slot = is_true;
	return 0;
}

static int
store_choice(const struct keyword *row, const char *text, int *slot, struct failure *why)
{
	char range[CONFIG_VALUE_RANGE];
	for (int i = 0; row->choices[i]; i++)
		if (strcmp(text, row->choices[i]) == 0) {
			*slot = i;
			return 0;
		}
	return failure_set(why, FAILURE_CONFIG, "'%.60s' is unknown here; write one of %s", text,
			   config_value_range(row, range));
}

static int
store_mode(const char *text, mode_t *slot, struct failure *why)
{
	mode_t mode = 0;
	const char *at = text;
	for (; *at >= '0' && *at <= '7' && mode <= MODE_MOST; at++)
		mode = mode * 8 + (mode_t)(*at - '0');
	if (*at || at == text || mode > MODE_MOST)
		return failure_set(why, FAILURE_CONFIG,
				   "'%.60s' is not a mode; write octal digits, such as 0660", text);
	*slot = mode;
	return 0;
}

/* A name, else a number. */
static int
find_user(const char *name, uid_t *uid, struct failure *why)
{
	uint64_t number;
	const struct passwd *user = getpwnam(name);
	if (user)
		*uid = user->pw_uid;
	else if (units_parse_count(name, &number, NULL) == 0 && number < UINT32_MAX)
		*uid = (uid_t)number;
	else
		return failure_set(why, FAILURE_CONFIG,
				   "the system has no user '%.60s'; name one it has, or a number",
				   name);
	return 0;
}

static int
find_group(const char *name, gid_t *gid, struct failure *why)
{
	uint64_t number;
	const struct group *group = getgrnam(name);
	if (group)
		*gid = group->gr_gid;
	else if (units_parse_count(name, &number, NULL) == 0 && number < UINT32_MAX)
		*gid = (gid_t)number;
	else
		return failure_set(why, FAILURE_CONFIG,
				   "the system has no group '%.60s'; name one it has, or a number",
				   name);
	return 0;
}

static int
store_owner(const char *text, struct owner *slot, struct failure *why)
{
	struct owner owner = { (uid_t)-1, (gid_t)-1 };
	char user[64];
	size_t length = strcspn(text, ":");
	const char *group = text[length] ? text + length + 1 : NULL;
	if (length >= sizeof(user) || (length == 0 && !group) || (group && *group == '\0'))
		return failure_set(why, FAILURE_CONFIG,
				   "'%.60s' is not an owner; write USER, USER:GROUP or :GROUP",
				   text);
	memcpy(user, text, length);
	user[length] = '\0';
	if ((length && find_user(user, &owner.uid, why)) ||
	    (group && find_group(group, &owner.gid, why)))
		return -1;
	*slot = owner;
	return 0;
}

/* ------------------------------------------------------------------ paths and addresses */

/* `text` begins with `scheme`. A relative path behind it becomes one in `directory`; NULL = no memory. */
static char *
resolve(const char *text, const char *scheme, const char *directory)
{
	const char *path = text + strlen(scheme);
	char *resolved;
	if (*path == '/' || *path == '\0')
		return strdup(text);
	return asprintf(&resolved, "%s%s/%s", scheme, directory, path) < 0 ? NULL : resolved;
}

static int
store_log_target(const char *text, const char *directory, char **slot, struct failure *why)
{
	bool is_file = strncmp(text, "file:", 5) == 0 && text[5];
	if (*text == '/')
		return failure_set(why, FAILURE_CONFIG,
				   "'%.100s' is not a log target; write file:%.100s", text, text);
	if (!is_file && strcmp(text, "auto") != 0 && strcmp(text, "stderr") != 0 &&
	    strcmp(text, "journal") != 0)
		return failure_set(why, FAILURE_CONFIG,
				   "'%.60s' is not a log target; write auto, stderr, journal or "
				   "file:PATH",
				   text);
	char *target = is_file ? resolve(text, "file:", directory) : strdup(text);
	if (!target)
		return no_memory(why);
	*slot = target;
	return 0;
}

static int
parse_address(const char *text, const char *directory, struct address *out, struct failure *why)
{
	if (strncmp(text, "unix:", 5) != 0 || text[5] == '@')
		return address_parse(text, out, why);
	char *resolved = resolve(text, "unix:", directory);
	if (!resolved)
		return no_memory(why);
	int result = address_parse(resolved, out, why);
	free(resolved);
	return result;
}

static int
store_address(const char *text, const char *directory, struct address_list *list,
	      struct failure *why)
{
	struct address *at = reallocarray(list->at, list->count + 1, sizeof(*at));
	if (!at)
		return no_memory(why);
	list->at = at;
	if (parse_address(text, directory, &at[list->count], why))
		return -1;
	list->count++;
	return 0;
}

static int
store_prefix(const char *text, struct prefix_list *list, struct failure *why)
{
	struct prefix *at = reallocarray(list->at, list->count + 1, sizeof(*at));
	if (!at)
		return no_memory(why);
	list->at = at;
	if (prefix_parse(text, &at[list->count], why))
		return -1;
	list->count++;
	return 0;
}

/* ------------------------------------------------------------------ texts and files */

static int
store_text(const char *text, char **slot, struct failure *why)
{
	char *copy = strdup(text);
	if (!copy)
		return no_memory(why);
	free(*slot);
	*slot = copy;
	return 0;
}

/* A credential of systemd's, "credential:NAME", as the path of its file. */
static int
find_credential(const char *name, char **path, struct failure *why)
{
	if (!address_name_is_valid(name) || name[0] == '.')
		return failure_set(why, FAILURE_CONFIG,
				   "'%.60s' is not the name of a credential; write credential:NAME "
				   "with 1 to 64 letters, digits or any of _ . -",
				   name);
	return systemd_credential(name, path, why);
}

static int
store_file(const char *text, const char *directory, char **slot, struct failure *why)
{
	char *path = NULL;
	if (strncmp(text, "credential:", 11) == 0) {
		if (find_credential(text + 11, &path, why) < 0)
			return -1;
	} else {
		path = resolve(text, "", directory);
	}
	if (!path)
		return no_memory(why);
	if (confine_may_read(path, why) < 0) {
		free(path);
		return -1;
	}
	free(*slot);
	*slot = path;
	return 0;
}

/* Whether `text` is a word that stands for something in place of a file. */
static bool
is_choice(const struct keyword *row, const char *text)
{
	for (size_t i = 0; row->choices && row->choices[i]; i++)
		if (strcmp(text, row->choices[i]) == 0)
			return true;
	return false;
}

/* Appends `text`, or the file of that name if there is a directory to take it from. */
static int
append_text(const char *text, const char *directory, struct text_list *list, struct failure *why)
{
	char **at = reallocarray(list->at, list->count + 1, sizeof(*at));
	if (!at)
		return no_memory(why);
	list->at = at;
	at[list->count] = NULL;
	if (*text == '\0')
		return failure_set(why, FAILURE_CONFIG, "'' names nothing; leave it out");
	if (directory ? store_file(text, directory, &at[list->count], why)
		      : store_text(text, &at[list->count], why))
		return -1;
	list->count++;
	return 0;
}

static int
store_right(const char *text, struct text_list *list, struct failure *why)
{
	uint64_t uid;
	bool is_uid = !strncmp(text, "uid:", 4) && units_parse_count(text + 4, &uid, why) == 0 &&
		      uid < UINT32_MAX;
	bool is_name = !strncmp(text, "cn:", 3) && text[3];
	if (!is_uid && !is_name)
		return failure_set(why, FAILURE_CONFIG,
				   "'%.100s' is nobody; write uid:NUMBER or cn:NAME", text);
	return append_text(text, NULL, list, why);
}

/* ------------------------------------------------------------------ rows */

int
config_value_store(const struct keyword *row, const char *text, const char *directory, void *object,
		   struct failure *why)
{
	void *slot = (char *)object + row->offset;
	if (*text == '\0' && row->fallback && *row->fallback == '\0' && !config_value_is_list(row))
		return config_value_default(row, object, why);
	switch (row->type) {
	case KEYWORD_FLAG:
		return store_flag(text, slot, why);
	case KEYWORD_COUNT:
	case KEYWORD_DURATION:
	case KEYWORD_SIZE:
	case KEYWORD_RATE:
		return store_amount(row, text, slot, why);
	case KEYWORD_COUNTS:
		return store_count(row, text, slot, why);
	case KEYWORD_FREQUENCY:
		return units_parse_frequency(text, slot, why);
	case KEYWORD_LOG_TARGET:
		return store_log_target(text, directory, slot, why);
	case KEYWORD_CHOICE:
		return store_choice(row, text, slot, why);
	case KEYWORD_MODE:
		return store_mode(text, slot, why);
	case KEYWORD_OWNER:
		return store_owner(text, slot, why);
	case KEYWORD_HOST:
		return address_parse_host(text, slot, why);
	case KEYWORD_ADDRESSES:
		return store_address(text, directory, slot, why);
	case KEYWORD_PREFIXES:
		return store_prefix(text, slot, why);
	case KEYWORD_TEXT:
		return store_text(text, slot, why);
	case KEYWORD_TEXTS:
		return append_text(text, NULL, slot, why);
	case KEYWORD_FILE:
		return is_choice(row, text) ? store_text(text, slot, why)
					    : store_file(text, directory, slot, why);
	case KEYWORD_FILES:
		return append_text(text, directory, slot, why);
	case KEYWORD_RIGHTS:
		return store_right(text, slot, why);
	}
	return failure_set(why, FAILURE_CONFIG, "type %d is unknown", row->type);
}

int
config_value_default(const struct keyword *row, void *object, struct failure *why)
{
	if (row->fallback[0])
		return config_value_store(row, row->fallback, "/", object, why);
	if (row->type == KEYWORD_OWNER)
		*(struct owner *)((char *)object + row->offset) =
			(struct owner){ (uid_t)-1, (gid_t)-1 };
	if (row->type == KEYWORD_TEXT || row->type == KEYWORD_FILE)
		return store_text("", (char **)((char *)object + row->offset), why);
	return 0; /* the others are empty when zeroed */
}

bool
config_value_is_list(const struct keyword *row)
{
	return row->type == KEYWORD_ADDRESSES || row->type == KEYWORD_PREFIXES ||
	       row->type == KEYWORD_COUNTS || row->type == KEYWORD_TEXTS ||
	       row->type == KEYWORD_FILES || row->type == KEYWORD_RIGHTS;
}

const char *
config_value_type_name(const struct keyword *row)
{
	static const char *const names[] = {
		[KEYWORD_FLAG] = "flag",
		[KEYWORD_COUNT] = "count",
		[KEYWORD_COUNTS] = "list of counts",
		[KEYWORD_DURATION] = "duration",
		[KEYWORD_SIZE] = "size",
		[KEYWORD_RATE] = "rate",
		[KEYWORD_FREQUENCY] = "frequency",
		[KEYWORD_LOG_TARGET] = "log target",
		[KEYWORD_CHOICE] = "choice",
		[KEYWORD_MODE] = "mode",
		[KEYWORD_OWNER] = "owner",
		[KEYWORD_HOST] = "IP address",
		[KEYWORD_ADDRESSES] = "list of addresses",
		[KEYWORD_PREFIXES] = "list of networks",
		[KEYWORD_TEXT] = "text",
		[KEYWORD_TEXTS] = "list of texts",
		[KEYWORD_FILE] = "file",
		[KEYWORD_FILES] = "list of files",
		[KEYWORD_RIGHTS] = "list of rights",
	};
	return names[row->type];
}

const char *
config_value_range(const struct keyword *row, char text[CONFIG_VALUE_RANGE])
{
	char least[UNITS_TEXT], most[UNITS_TEXT];
	size_t used = 0;
	text[0] = '\0';
	if (is_amount(row->type))
		snprintf(text, CONFIG_VALUE_RANGE, "%s to %s%s",
			 format_amount(row->type, row->least, least),
			 format_amount(row->type, row->most, most),
			 row->least > 0 && is_default(row, 0) ? ", or 0" : "");
	for (size_t i = 0; row->type == KEYWORD_CHOICE && row->choices[i]; i++)
		used += (size_t)snprintf(text + used, CONFIG_VALUE_RANGE - used, "%s%s",
					 i ? ", " : "", row->choices[i]);
	return text;
}
