#include "config_value.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* clang-format off: it needs what stands above. */
#include <cmocka.h>
/* clang-format on */

struct object {
	char *file;
	struct text_list files;
};

static const struct keyword rows[] = {
	{ .name = "file", .type = KEYWORD_FILE, .fallback = "", .offset = 0 },
	{ .name = "files",
	  .type = KEYWORD_FILES,
	  .fallback = "",
	  .offset = offsetof(struct object, files) },
	{ .name = NULL },
};

static void
a_credential_is_a_file_of_systemd(void **state)
{
	(void)state;
	struct object object = { 0 };
	struct failure why;

	setenv("CREDENTIALS_DIRECTORY", "/run/credentials/penstock.service", 1);
	assert_int_equal(config_value_store(&rows[0], "credential:edge.key", "/etc", &object, &why),
			 0);
	assert_string_equal(object.file, "/run/credentials/penstock.service/edge.key");
	assert_int_equal(config_value_store(&rows[1], "credential:a", "/etc", &object, &why), 0);
	assert_int_equal(config_value_store(&rows[1], "b", "/etc", &object, &why), 0);
	assert_int_equal(object.files.count, 2);
	assert_string_equal(object.files.at[0], "/run/credentials/penstock.service/a");
	assert_string_equal(object.files.at[1], "/etc/b");
	keyword_release(rows, &object);
}

static void
a_wrong_credential_is_told(void **state)
{
	(void)state;
	static const char *const wrong[] = { "credential:", "credential:../shadow", "credential:..",
					     "credential:a/b" };
	struct object object = { 0 };
	struct failure why;

	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		assert_int_equal(config_value_store(&rows[0], wrong[i], "/etc", &object, &why), -1);
		assert_non_null(strstr(why.text, "is not the name of a credential; write "));
	}
	unsetenv("CREDENTIALS_DIRECTORY");
	assert_int_equal(config_value_store(&rows[0], "credential:key", "/etc", &object, &why), -1);
	assert_string_equal(why.text, "credential:key is known to the service only, and needs "
				      "LoadCredential=key:PATH in its unit; without systemd name a "
				      "file");
	assert_null(object.file);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_credential_is_a_file_of_systemd),
		cmocka_unit_test(a_wrong_credential_is_told),
	};
	return cmocka_run_group_tests_name("config_value", tests, NULL, NULL);
}
