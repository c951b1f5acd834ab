/*
 * What tests of TLS share: certificates that are made here, and a directory for their files.
 */
#ifndef PENSTOCK_TESTS_TLS_WORLD_H
#define PENSTOCK_TESTS_TLS_WORLD_H

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rsa.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* clang-format off: it needs what stands above. */
#include <cmocka.h>
/* clang-format on */

#define MAYBE __attribute__((unused))

/* A certificate with its key. */
struct paper {
	X509 *certificate;
	EVP_PKEY *key;
};

struct paper_plan {
	const char *name, *unit;     /* CN, OU */
	const char *others;          /* subjectAltName: "DNS:a.example,URI:x" */
	const char *usage;           /* extendedKeyUsage: "serverAuth" */
	const struct paper *issuer;  /* NULL = itself */
	const struct paper *renewed; /* whose key it gets; NULL = a new one */
	bool is_ca, is_rsa;
	long from_days, to_days; /* from now; to_days 0 = 30 */
};

static char world_directory[64];

static MAYBE void
world_open(void)
{
	strcpy(world_directory, "/tmp/penstock-tls-XXXXXX");
	assert_non_null(mkdtemp(world_directory));
}

static MAYBE void
world_close(void)
{
	char command[128];
	snprintf(command, sizeof(command), "rm -rf %s", world_directory);
	assert_int_equal(system(command), 0);
}

/* The path of a file in the directory, in one of a few static buffers. */
static MAYBE const char *
world_path(const char *name)
{
	static char paths[64][128];
	static unsigned int next;
	char *path = paths[next++ % 64];
	snprintf(path, sizeof(paths[0]), "%s/%s", world_directory, name);
	return path;
}

static MAYBE void
paper_extend(X509 *certificate, X509 *issuer, int nid, const char *value)
{
	X509V3_CTX context;
	X509V3_set_ctx(&context, issuer, certificate, NULL, NULL, 0);
	X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, &context, nid, value);
	assert_non_null(extension);
	X509_add_ext(certificate, extension, -1);
	X509_EXTENSION_free(extension);
}

static MAYBE struct paper
paper_make(struct paper_plan plan)
{
	static long serial = 1000;
	struct paper paper = { .certificate = X509_new() };
	if (plan.renewed) {
		paper.key = plan.renewed->key;
		EVP_PKEY_up_ref(paper.key);
	} else {
		paper.key = plan.is_rsa ? EVP_RSA_gen(2048) : EVP_EC_gen("P-256");
	}
	X509 *certificate = paper.certificate;
	X509 *issuer = plan.issuer ? plan.issuer->certificate : certificate;
	X509_set_version(certificate, 2);
	ASN1_INTEGER_set(X509_get_serialNumber(certificate), ++serial);
	X509_gmtime_adj(X509_getm_notBefore(certificate), plan.from_days * 86400 - 60);
	X509_gmtime_adj(X509_getm_notAfter(certificate),
			(plan.to_days ? plan.to_days : 30) * 86400);
	X509_set_pubkey(certificate, paper.key);
	X509_NAME *name = X509_get_subject_name(certificate);
	X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_UTF8, (const unsigned char *)plan.name, -1,
				   -1, 0);
	if (plan.unit)
		X509_NAME_add_entry_by_txt(name, "OU", MBSTRING_UTF8,
					   (const unsigned char *)plan.unit, -1, -1, 0);
	X509_set_issuer_name(certificate, X509_get_subject_name(issuer));
	paper_extend(certificate, issuer, NID_basic_constraints,
		     plan.is_ca ? "critical,CA:TRUE" : "critical,CA:FALSE");
	paper_extend(certificate, issuer, NID_subject_key_identifier, "hash");
	if (plan.others)
		paper_extend(certificate, issuer, NID_subject_alt_name, plan.others);
	if (plan.usage)
		paper_extend(certificate, issuer, NID_ext_key_usage, plan.usage);
	assert_true(X509_sign(certificate, plan.issuer ? plan.issuer->key : paper.key,
			      EVP_sha256()) > 0);
	return paper;
}

static MAYBE void
paper_free(struct paper *paper)
{
	X509_free(paper->certificate);
	EVP_PKEY_free(paper->key);
	*paper = (struct paper){ 0 };
}

/* Writes (or with "a" appends) PEM; either may be NULL. Only the owner may read the file. */
static MAYBE const char *
paper_write(const char *name, const char *mode, X509 *certificate, EVP_PKEY *key)
{
	const char *path = world_path(name);
	FILE *file = fopen(path, mode);
	assert_non_null(file);
	assert_int_equal(chmod(path, 0600), 0);
	if (certificate)
		assert_true(PEM_write_X509(file, certificate));
	if (key)
		assert_true(PEM_write_PrivateKey(file, key, NULL, NULL, 0, NULL, NULL));
	assert_int_equal(fclose(file), 0);
	return path;
}

static MAYBE const char *
text_write(const char *name, const char *text)
{
	const char *path = world_path(name);
	FILE *file = fopen(path, "w");
	assert_non_null(file);
	assert_int_equal(chmod(path, 0600), 0);
	assert_true(fputs(text, file) >= 0);
	assert_int_equal(fclose(file), 0);
	return path;
}

#endif
