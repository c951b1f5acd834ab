/*
 * The TLS filter in memory: filter against filter, and filter against an SSL of plain OpenSSL, over a
 * wire of evbuffers. Certificates are made here.
 */
#include "clock.h"
#include "config_value.h"
#include "facts.h"
#include "filters/registry.h"
#include "filters/tls_conf.h"
#include "filters/tls_counters.h"
#include "filters/tls_tickets.h"
#include "filters/tls_words.h"
#include "stack_ends.h"
#include "tls_world.h"

#include <malloc.h>
#include <openssl/err.h>
#include <openssl/ocsp.h>
#include <openssl/pkcs12.h>
#include <openssl/provider.h>
#include <openssl/ui.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define HAS_OWN_MALLOC 1
#endif
#endif

#define SECRET "000102030405060708090a0b0c0d0e0f"

/* How much later it is for all of this program than by the machine's clock. */
static time_t skipped_s;

int
clock_gettime(clockid_t clock, struct timespec *now)
{
	int result = (int)syscall(SYS_clock_gettime, clock, now);
	now->tv_sec += skipped_s;
	return result;
}

/* --- Papers: who everybody is ------------------------------------------------------------------- */

static struct paper authority, other_authority, server, server_rsa, client, stranger,
	expired_client;

static int
make_papers(void **unused)
{
	(void)unused;
	world_open();
	authority = paper_make((struct paper_plan){ .name = "Test CA", .is_ca = true });
	other_authority = paper_make((struct paper_plan){ .name = "Other CA", .is_ca = true });
	server = paper_make((struct paper_plan){ .name = "server",
						 .others = "DNS:server.example,IP:192.0.2.1",
						 .issuer = &authority });
	server_rsa = paper_make((struct paper_plan){ .name = "server",
						     .others = "DNS:server.example",
						     .issuer = &authority,
						     .is_rsa = true });
	client = paper_make((struct paper_plan){
		.name = "client",
		.unit = "Branch",
		.others = "DNS:client.example,URI:spiffe://example/client,IP:192.0.2.7",
		.issuer = &authority });
	stranger =
		paper_make((struct paper_plan){ .name = "stranger", .issuer = &other_authority });
	expired_client = paper_make((struct paper_plan){
		.name = "late", .issuer = &authority, .from_days = -60, .to_days = -1 });
	paper_write("ca.pem", "w", authority.certificate, NULL);
	paper_write("other-ca.pem", "w", other_authority.certificate, NULL);
	paper_write("server.pem", "w", server.certificate, server.key);
	paper_write("server-rsa.pem", "w", server_rsa.certificate, server_rsa.key);
	paper_write("client.pem", "w", client.certificate, client.key);
	paper_write("stranger.pem", "w", stranger.certificate, stranger.key);
	text_write("psk", "# sites\nsite-a:" SECRET "\nsite-b:ffffffffffffffffffffffffffffffff\n");
	return 0;
}

static int
free_papers(void **unused)
{
	struct paper *papers[] = { &authority, &other_authority, &server,        &server_rsa,
				   &client,    &stranger,        &expired_client };
	(void)unused;
	for (size_t i = 0; i < sizeof(papers) / sizeof(papers[0]); i++)
		paper_free(papers[i]);
	world_close();
	return 0;
}

/* --- Sections ----------------------------------------------------------------------------------- */

#define SETTINGS 16

struct setting {
	const char *keyword, *text; /* a list's items repeat the keyword */
};

static int
try_section(struct tls_conf **out, const struct setting *settings, struct failure *why)
{
	struct tls_conf *conf = calloc(1, sizeof(*conf));
	*out = conf;
	for (const struct keyword *row = tls_conf_keywords; row->name; row++) {
		bool is_set = false;
		for (int i = 0; i < SETTINGS && settings[i].keyword; i++) {
			if (strcmp(settings[i].keyword, row->name) != 0)
				continue;
			is_set = true;
			if (config_value_store(row, settings[i].text, world_directory, conf, why))
				return -1;
		}
		if (!is_set)
			assert_int_equal(config_value_default(row, conf, why), 0);
	}
	for (int i = 0; i < SETTINGS && settings[i].keyword; i++) {
		const struct keyword *row = tls_conf_keywords;
		while (row->name && strcmp(row->name, settings[i].keyword) != 0)
			row++;
		if (!row->name)
			fail_msg("there is no keyword %s", settings[i].keyword);
	}
	return registry_find("tls")->configure(conf, why);
}

static void
discard(struct tls_conf *conf)
{
	tls_conf_discard(conf);
	keyword_release(tls_conf_keywords, conf);
	free(conf);
}

#define SECTION(...) section((const struct setting[SETTINGS]){ __VA_ARGS__ })

static struct tls_conf *
section(const struct setting *settings)
{
	struct tls_conf *conf;
	struct failure why;
	if (try_section(&conf, settings, &why))
		fail_msg("%s", why.text);
	return conf;
}

/* --- A filter at one end of the wire ------------------------------------------------------------ */

struct end {
	struct chain_link link;
	struct chain chain;
	struct facts facts;
	struct stack *stack;
	struct stack_flow flows[FILTER_FLOWS];
	struct failure why;
	bool has_failed;
};

static void
end_open(struct end *end, const struct tls_conf *conf, enum filter_side side, const char *target)
{
	*end = (struct end){ .link = { registry_find("tls"), conf } };
	end->chain = (struct chain){ &end->link, 1 };
	end->facts.target_host = target;
	stack_ends_open(end->flows, FILTER_FLUSH);
	if (tls_conf_fits(conf, side, &end->why) ||
	    stack_open(&end->stack, &end->chain, side, &end->facts, &end->why))
		fail_msg("%s", end->why.text);
	end->facts.target_host = "";
}

static void
end_close(struct end *end)
{
	stack_close(end->stack);
	facts_release(&end->facts);
	stack_ends_close(end->flows);
}

static bool
end_step(struct end *end)
{
	if (end->has_failed)
		return false;
	for (int flow = 0; flow < FILTER_FLOWS; flow++)
		end->flows[flow].room_bytes = 1 << 20;
	ERR_clear_error();
	enum stack_result result = stack_step(end->stack, end->flows, &end->why);
	assert_int_equal(ERR_peek_error(),
			 0); /* the next connection of the thread would take it for its own */
	end->has_failed = result == STACK_FAILED;
	return result != STACK_REST;
}

static void
end_say(struct end *end, const char *text)
{
	evbuffer_add(end->flows[FILTER_OUT].src, text, strlen(text));
}

static void
end_finish(struct end *end)
{
	end->flows[FILTER_OUT].flush = FILTER_FINISHED;
}

/* What has come for the core, since the last time. */
static const char *
end_heard(struct end *end)
{
	static char text[256];
	ev_ssize_t length = evbuffer_copyout(end->flows[FILTER_IN].dst, text, sizeof(text) - 1);
	text[length] = '\0';
	evbuffer_drain(end->flows[FILTER_IN].dst, (size_t)length);
	return text;
}

static void
assert_refused(const struct end *end, const char *words)
{
	if (!end->has_failed)
		fail_msg("no failure; \"%s\" was expected", words);
	if (!strstr(end->why.text, words))
		fail_msg("\"%s\" does not say \"%s\"", end->why.text, words);
}

static void
assert_ready(struct end *end)
{
	if (end->has_failed)
		fail_msg("failed: %s", end->why.text);
	assert_true(stack_is_ready(end->stack));
}

/* --- Plain OpenSSL at one end ------------------------------------------------------------------- */

struct plain {
	SSL_CTX *context;
	SSL *ssl;
	BIO *in, *out;
	char heard[256];
	int alert; /* received; -1 = none */
	unsigned int tickets;
	SSL_SESSION *session; /* the newest given */
	bool has_ended;       /* close_notify was received */
	bool has_failed;
};

static void
on_info(const SSL *ssl, int where, int value)
{
	struct plain *plain = SSL_get_app_data(ssl);
	if ((where & SSL_CB_READ_ALERT) == SSL_CB_READ_ALERT &&
	    (value & 0xff) != SSL_AD_CLOSE_NOTIFY)
		plain->alert = value & 0xff;
}

static int
on_session(SSL *ssl, SSL_SESSION *session)
{
	struct plain *plain = SSL_get_app_data(ssl);
	plain->tickets++;
	SSL_SESSION_free(plain->session);
	plain->session = session;
	return 1;
}

static void
plain_context(struct plain *plain, bool is_server, const struct paper *paper)
{
	*plain = (struct plain){ .alert = -1 };
	plain->context = SSL_CTX_new(is_server ? TLS_server_method() : TLS_client_method());
	assert_non_null(plain->context);
	SSL_CTX_set_session_cache_mode(plain->context,
				       is_server ? SSL_SESS_CACHE_SERVER : SSL_SESS_CACHE_CLIENT);
	if (!is_server)
		SSL_CTX_sess_set_new_cb(plain->context, on_session);
	SSL_CTX_set_info_callback(plain->context, on_info);
	X509_STORE_add_cert(SSL_CTX_get_cert_store(plain->context), authority.certificate);
	if (paper)
		assert_int_equal(SSL_CTX_use_cert_and_key(plain->context, paper->certificate,
							  paper->key, NULL, 1),
				 1);
}

static void
plain_begin(struct plain *plain, const char *name)
{
	plain->ssl = SSL_new(plain->context);
	plain->in = BIO_new(BIO_s_mem());
	plain->out = BIO_new(BIO_s_mem());
	BIO_set_mem_eof_return(plain->in, -1);
	SSL_set_bio(plain->ssl, plain->in, plain->out);
	SSL_set_app_data(plain->ssl, plain);
	if (SSL_is_server(plain->ssl))
		SSL_set_accept_state(plain->ssl);
	else
		SSL_set_connect_state(plain->ssl);
	if (name)
		SSL_set_tlsext_host_name(plain->ssl, name);
}

/* A client of no section and the near side of one, which have said nothing yet. */
static void
begin_both(struct end *end, struct plain *plain, const struct tls_conf *near)
{
	plain_context(plain, false, NULL);
	plain_begin(plain, NULL);
	end_open(end, near, FILTER_NEAR, "");
}

/* Ends the connection and keeps context and session. */
static void
plain_end(struct plain *plain)
{
	SSL_shutdown(plain->ssl); /* or the session does not count as one that went well */
	SSL_free(plain->ssl);
	plain->ssl = NULL;
	plain->alert = -1;
	plain->heard[0] = '\0';
	plain->has_ended = plain->has_failed = false;
}

static void
plain_close(struct plain *plain)
{
	if (plain->ssl)
		plain_end(plain);
	SSL_SESSION_free(plain->session);
	SSL_CTX_free(plain->context);
}

static void
plain_step(struct plain *plain)
{
	char bytes[256];
	ERR_clear_error();
	int got = SSL_read(plain->ssl, bytes, sizeof(bytes));
	while (got > 0) {
		size_t length = strlen(plain->heard);
		snprintf(plain->heard + length, sizeof(plain->heard) - length, "%.*s", got, bytes);
		got = SSL_read(plain->ssl, bytes, sizeof(bytes));
	}
	int error = SSL_get_error(plain->ssl, got);
	plain->has_ended |= error == SSL_ERROR_ZERO_RETURN;
	plain->has_failed |= error == SSL_ERROR_SSL;
}

/* What one has said reaches the other; whether it was anything. */

static bool
carry_to_plain(struct end *end, struct plain *plain)
{
	char bytes[4096];
	int length, total = 0;
	while ((length = evbuffer_remove(end->flows[FILTER_OUT].dst, bytes, sizeof(bytes))) > 0) {
		BIO_write(plain->in, bytes, length);
		total += length;
	}
	return total;
}

static bool
carry_to_end(struct plain *plain, struct end *end)
{
	char bytes[4096];
	int length, total = 0;
	while ((length = BIO_read(plain->out, bytes, sizeof(bytes))) > 0) {
		evbuffer_add(end->flows[FILTER_IN].src, bytes, (size_t)length);
		total += length;
	}
	return total;
}

/* Until nothing moves. */
static void
talk_plain(struct end *end, struct plain *plain)
{
	for (bool moved = true; moved;) {
		moved = end_step(end);
		moved |= carry_to_plain(end, plain);
		plain_step(plain);
		moved |= carry_to_end(plain, end);
	}
}

static void
talk(struct end *near, struct end *far)
{
	for (bool moved = true; moved;) {
		moved = end_step(near);
		moved |= end_step(far);
		evbuffer_add_buffer(near->flows[FILTER_IN].src, far->flows[FILTER_OUT].dst);
		evbuffer_add_buffer(far->flows[FILTER_IN].src, near->flows[FILTER_OUT].dst);
	}
}

/* Both directions carry what they have to. */
static void
assert_talks(struct end *end, struct plain *plain)
{
	talk_plain(end, plain);
	assert_ready(end);
	end_say(end, "from the filter");
	assert_int_equal(SSL_write(plain->ssl, "from openssl", 12), 12);
	talk_plain(end, plain);
	assert_ready(end);
	assert_string_equal(end_heard(end), "from openssl");
	assert_string_equal(plain->heard, "from the filter");
	plain->heard[0] = '\0';
}

/* --- Versions, facts, names --------------------------------------------------------------------- */

static void
test_versions(void **unused)
{
	static const char *const texts[] = { "1.2", "1.3" };
	static const int versions[] = { TLS1_2_VERSION, TLS1_3_VERSION };
	(void)unused;
	for (int i = 0; i < 2; i++) {
		struct tls_conf *near =
			SECTION({ "certificate", "server.pem" }, { "min_version", texts[i] },
				{ "max_version", texts[i] });
		struct tls_conf *far = SECTION({ "ca", "ca.pem" }, { "min_version", texts[i] },
					       { "max_version", texts[i] });
		for (int side = 0; side < 2; side++) {
			struct end end;
			struct plain plain;
			plain_context(&plain, side == FILTER_FAR, side ? &server : NULL);
			plain_begin(&plain, side ? NULL : "server.example");
			end_open(&end, side ? far : near, (enum filter_side)side, "server.example");
			assert_talks(&end, &plain);
			assert_int_equal(SSL_version(plain.ssl), versions[i]);
			if (side == FILTER_NEAR) {
				assert_string_equal(end.facts.tls_version,
						    i ? "TLSv1.3" : "TLSv1.2");
				assert_string_equal(end.facts.sni, "server.example");
				assert_non_null(end.facts.tls_cipher);
				assert_null(end.facts.certificate);
			} else {
				assert_null(end.facts.tls_version); /* facts are the client's */
				assert_string_equal(SSL_get_servername(plain.ssl, 0),
						    "server.example");
			}
			end_close(&end);
			plain_close(&plain);
		}
		discard(near);
		discard(far);
	}
}

static void
expect_version_refused(const char *least, const char *most, int version)
{
	struct tls_conf *near = SECTION({ "certificate", "server.pem" }, { "min_version", least },
					{ "max_version", most });
	struct end end;
	struct plain plain;
	plain_context(&plain, false, NULL);
	SSL_CTX_set_min_proto_version(plain.context, version);
	SSL_CTX_set_max_proto_version(plain.context, version);
	SSL_CTX_set_security_level(plain.context, 0);
	plain_begin(&plain, NULL);
	end_open(&end, near, FILTER_NEAR, "");
	talk_plain(&end, &plain);
	assert_refused(&end, "the peer speaks no TLS version that is allowed here");
	assert_int_equal(plain.alert, SSL_AD_PROTOCOL_VERSION);
	end_close(&end);
	plain_close(&plain);
	discard(near);
}

static void
test_old_versions_are_refused(void **unused)
{
	(void)unused;
	expect_version_refused("1.2", "1.3", TLS1_1_VERSION);
	expect_version_refused("1.3", "1.3", TLS1_2_VERSION);
	expect_version_refused("1.2", "1.2", TLS1_3_VERSION);
}

/* What the section says of ciphers and groups is what is agreed on, in its order, with a peer that would take
 * any. */
static void
test_ciphers_and_groups(void **unused)
{
	static const struct {
		struct setting settings[2];
		const char *cipher;
		int group; /* 0 = whichever */
	} cases[] = {
		{ { { "groups", "P-384" } }, NULL, NID_secp384r1 },
		/* In TLS 1.3 a server saves a round trip with what the client guessed. */
		{ { { "groups", "P-256:X25519" }, { "max_version", "1.2" } },
		  NULL,
		  NID_X9_62_prime256v1 },
		{ { { "groups", "P-384:P-256" }, { "max_version", "1.2" } }, NULL, NID_secp384r1 },
		{ { { "ciphersuites", "TLS_CHACHA20_POLY1305_SHA256" } },
		  "TLS_CHACHA20_POLY1305_SHA256",
		  0 },
		{ { { "ciphersuites", "TLS_CHACHA20_POLY1305_SHA256:TLS_AES_256_GCM_SHA384" } },
		  "TLS_CHACHA20_POLY1305_SHA256",
		  0 },
		{ { { "ciphersuites", "TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256" } },
		  "TLS_AES_256_GCM_SHA384",
		  0 },
		{ { { "ciphers", "ECDHE+CHACHA20:ECDHE+AESGCM" }, { "max_version", "1.2" } },
		  "ECDHE-ECDSA-CHACHA20-POLY1305",
		  0 },
		{ { { "ciphers", "ECDHE-ECDSA-AES128-GCM-SHA256" }, { "max_version", "1.2" } },
		  "ECDHE-ECDSA-AES128-GCM-SHA256",
		  0 },
	};
	(void)unused;
	for (size_t i = 0; i < 2 * sizeof(cases) / sizeof(cases[0]); i++) {
		const struct setting *settings = cases[i / 2].settings;
		enum filter_side side = (enum filter_side)(i % 2);
		struct tls_conf *conf = SECTION({ "certificate", "server.pem" }, { "ca", "ca.pem" },
						settings[0], settings[1]);
		struct end end;
		struct plain plain;
		plain_context(&plain, side == FILTER_FAR, side == FILTER_FAR ? &server : NULL);
		plain_begin(&plain, NULL);
		end_open(&end, conf, side, "server.example");
		assert_talks(&end, &plain);
		if (cases[i / 2].cipher)
			assert_string_equal(SSL_get_cipher_name(plain.ssl), cases[i / 2].cipher);
		if (cases[i / 2].group)
			assert_int_equal(SSL_get_negotiated_group(plain.ssl), cases[i / 2].group);
		end_close(&end);
		plain_close(&plain);
		discard(conf);
	}
}

static void
test_other_ciphers_and_groups_are_refused(void **unused)
{
	static const struct {
		int version;
		const char *groups, *ciphers, *suites, *words;
	} cases[] = {
		{ TLS1_3_VERSION, "X25519:P-256", NULL, NULL,
		  "the peer offers no group that is allowed here" },
		{ TLS1_3_VERSION, NULL, NULL, "TLS_AES_128_GCM_SHA256",
		  "the peer offers no cipher that is allowed here" },
		{ TLS1_2_VERSION, NULL, "ECDHE+AESGCM", NULL,
		  "the peer offers no cipher that is allowed here" },
	};
	(void)unused;
	struct tls_conf *near = SECTION({ "certificate", "server.pem" }, { "groups", "P-384" },
					{ "ciphers", "ECDHE+CHACHA20" },
					{ "ciphersuites", "TLS_AES_256_GCM_SHA384" });
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct end end;
		struct plain plain;
		plain_context(&plain, false, NULL);
		SSL_CTX_set_max_proto_version(plain.context, cases[i].version);
		if (cases[i].groups)
			SSL_CTX_set1_groups_list(plain.context, cases[i].groups);
		if (cases[i].ciphers)
			SSL_CTX_set_cipher_list(plain.context, cases[i].ciphers);
		if (cases[i].suites)
			SSL_CTX_set_ciphersuites(plain.context, cases[i].suites);
		plain_begin(&plain, NULL);
		end_open(&end, near, FILTER_NEAR, "");
		talk_plain(&end, &plain);
		assert_refused(&end, cases[i].words);
		assert_int_equal(plain.alert, SSL_AD_HANDSHAKE_FAILURE);
		end_close(&end);
		plain_close(&plain);
	}
	discard(near);
}

static void
expect_certificate(const struct tls_conf *near, const char *name, const char *common_name,
		   const char *algorithms, int type)
{
	struct end end;
	struct plain plain;
	char text[64];
	plain_context(&plain, false, NULL);
	if (algorithms)
		SSL_CTX_set1_sigalgs_list(plain.context, algorithms);
	plain_begin(&plain, name);
	end_open(&end, near, FILTER_NEAR, "");
	talk_plain(&end, &plain);
	assert_ready(&end);
	X509 *shown = SSL_get0_peer_certificate(plain.ssl);
	X509_NAME_get_text_by_NID(X509_get_subject_name(shown), NID_commonName, text, sizeof(text));
	assert_string_equal(text, common_name);
	if (type)
		assert_int_equal(EVP_PKEY_get_base_id(X509_get0_pubkey(shown)), type);
	end_close(&end);
	plain_close(&plain);
}

static void
test_certificate_by_name(void **unused)
{
	(void)unused;
	struct paper papers[] = {
		paper_make((struct paper_plan){
			.name = "star", .others = "DNS:*.wild.example", .issuer = &authority }),
		paper_make((struct paper_plan){
			.name = "exact", .others = "DNS:a.wild.example", .issuer = &authority }),
		paper_make((struct paper_plan){ .name = "exact rsa",
						.is_rsa = true,
						.others = "DNS:a.wild.example",
						.issuer = &authority }),
		paper_make((struct paper_plan){
			.name = "part", .others = "DNS:web*.part.example", .issuer = &authority }),
	};
	for (int i = 0; i < 4; i++) {
		char name[8] = { (char)('0' + i) };
		paper_write(name, "w", papers[i].certificate, papers[i].key);
	}
	struct tls_conf *near =
		SECTION({ "certificate", "server.pem" }, { "certificate", "server-rsa.pem" },
			{ "certificate", "0" }, { "certificate", "1" }, { "certificate", "2" },
			{ "certificate", "3" });
	expect_certificate(near, NULL, "server", NULL, EVP_PKEY_EC);
	expect_certificate(near, "unknown.example", "server", NULL, EVP_PKEY_EC);
	expect_certificate(near, "server.example", "server", "RSA-PSS+SHA256", EVP_PKEY_RSA);
	expect_certificate(near, "b.wild.example", "star", NULL, 0);
	expect_certificate(near, "a.wild.example", "exact", "ECDSA+SHA256:RSA-PSS+SHA256", 0);
	expect_certificate(near, "A.wild.EXAMPLE", "exact", NULL, 0);
	expect_certificate(near, "a.wild.example", "exact rsa", "RSA-PSS+SHA256", EVP_PKEY_RSA);
	expect_certificate(near, "a.b.wild.example", "server", NULL, 0);
	expect_certificate(near, "wild.example", "server", NULL, 0);
	/* A star is a whole part of a name (RFC 6125 6.4.3). */
	expect_certificate(near, "web1.part.example", "server", NULL, 0);
	discard(near);
	for (int i = 0; i < 4; i++)
		paper_free(&papers[i]);
}

static void
write_pkcs12(const char *name, const char *passphrase, STACK_OF(X509) * chain, int key_cipher,
	     const struct paper *paper)
{
	PKCS12 *container = PKCS12_create(passphrase, "server", paper->key, paper->certificate,
					  chain, key_cipher, key_cipher, 0, 0, 0);
	assert_non_null(container);
	FILE *file = fopen(world_path(name), "w");
	assert_non_null(file);
	assert_true(i2d_PKCS12_fp(file, container));
	fclose(file);
	chmod(world_path(name), 0600);
	PKCS12_free(container);
}

static void
test_pkcs12(void **unused)
{
	(void)unused;
	write_pkcs12("server.p12", "open sesame", NULL, 0, &server);
	text_write("passphrase", "open sesame\n");
	struct tls_conf *near = SECTION({ "pkcs12", "server.p12" }, { "passphrase", "passphrase" });
	expect_certificate(near, "server.example", "server", NULL, 0);
	discard(near);
	write_pkcs12("open.p12", "", NULL, 0, &server);
	near = SECTION({ "pkcs12", "open.p12" });
	expect_certificate(near, "server.example", "server", NULL, 0);
	discard(near);
}

/* The container has no order of its own, and often the root; what is shown has. */
static void
test_pkcs12_with_chain(void **unused)
{
	(void)unused;
	struct paper middle = paper_make(
		(struct paper_plan){ .name = "middle", .is_ca = true, .issuer = &authority });
	struct paper low =
		paper_make((struct paper_plan){ .name = "low", .is_ca = true, .issuer = &middle });
	struct paper leaf = paper_make((struct paper_plan){
		.name = "leaf", .others = "DNS:server.example", .issuer = &low });
	X509 *const issuers[] = { low.certificate, middle.certificate, authority.certificate };
	for (int turn = 0; turn < 6; turn++) {
		static const int orders[6][3] = { { 0, 1, 2 }, { 0, 2, 1 }, { 1, 0, 2 },
						  { 1, 2, 0 }, { 2, 0, 1 }, { 2, 1, 0 } };
		STACK_OF(X509) *chain = sk_X509_new_null();
		for (int i = 0; i < 3; i++)
			sk_X509_push(chain, issuers[orders[turn][i]]);
		write_pkcs12("chain.p12", "open sesame", chain, 0, &leaf);
		sk_X509_free(chain);
		text_write("passphrase", "open sesame\n");
		struct tls_conf *near =
			SECTION({ "pkcs12", "chain.p12" }, { "passphrase", "passphrase" });
		STACK_OF(X509) *read = near->identities.at[0].chain;
		for (int i = 0; i < 3; i++)
			assert_int_equal(X509_cmp(sk_X509_value(read, i), issuers[i]), 0);
		discard(near);
	}
	paper_free(&leaf);
	paper_free(&low);
	paper_free(&middle);
}

static void
test_alpn(void **unused)
{
	(void)unused;
	struct tls_conf *near =
		SECTION({ "certificate", "server.pem" }, { "alpn", "h2" }, { "alpn", "http/1.1" });
	struct tls_conf *far =
		SECTION({ "ca", "ca.pem" }, { "alpn", "http/1.1" }, { "alpn", "h2" });
	struct tls_conf *odd = SECTION({ "ca", "ca.pem" }, { "alpn", "smtp" });
	struct end left, right;
	end_open(&left, near, FILTER_NEAR, "");
	end_open(&right, far, FILTER_FAR, "server.example");
	talk(&left, &right);
	assert_ready(&left);
	assert_string_equal(left.facts.alpn, "h2"); /* the server's order */
	end_close(&left);
	end_close(&right);

	end_open(&left, near, FILTER_NEAR, "");
	end_open(&right, odd, FILTER_FAR, "server.example");
	talk(&left, &right);
	assert_refused(&left, "ALPN");
	assert_refused(&right, "the peer refuses: no application protocol");
	end_close(&left);
	end_close(&right);
	discard(near);
	discard(far);
	discard(odd);
}

/* --- Who may come in ---------------------------------------------------------------------------- */

/* A client with that paper meets the section. Returns its alert. */
static int
meet(struct end *end, const struct tls_conf *near, const struct paper *paper, int version)
{
	struct plain plain;
	plain_context(&plain, false, paper);
	SSL_CTX_set_max_proto_version(plain.context, version);
	plain_begin(&plain, NULL);
	end_open(end, near, FILTER_NEAR, "");
	talk_plain(end, &plain);
	int alert = plain.alert;
	plain_close(&plain);
	return alert;
}

/* The section meets a server with that paper. */
static void
ask(struct end *end, const struct tls_conf *far, const char *target, const struct paper *paper)
{
	struct plain plain;
	plain_context(&plain, true, paper);
	plain_begin(&plain, NULL);
	end_open(end, far, FILTER_FAR, target);
	talk_plain(end, &plain);
	plain_close(&plain);
}

static void
expect_refused(const struct tls_conf *near, const struct paper *paper, const char *words, int alert)
{
	static const int versions[] = { TLS1_2_VERSION, TLS1_3_VERSION };
	for (int i = 0; i < 2; i++) {
		struct end end;
		uint64_t before = tls_counters_read_failures(FILTER_NEAR, TLS_BAD_CERTIFICATE);
		assert_int_equal(meet(&end, near, paper, versions[i]), alert);
		assert_refused(&end, words);
		assert_null(end.facts.certificate);
		if (paper)
			assert_int_equal(
				tls_counters_read_failures(FILTER_NEAR, TLS_BAD_CERTIFICATE),
				before + 1);
		end_close(&end);
	}
}

static void
expect_let_in(const struct tls_conf *near, const struct paper *paper, const char *common_name)
{
	static const int versions[] = { TLS1_2_VERSION, TLS1_3_VERSION };
	for (int i = 0; i < 2; i++) {
		struct end end;
		assert_int_equal(meet(&end, near, paper, versions[i]), -1);
		assert_ready(&end);
		if (common_name) {
			assert_string_equal(end.facts.common_name, common_name);
			assert_int_equal(strlen(end.facts.certificate), 7 + 64);
		} else {
			assert_null(end.facts.common_name);
			assert_null(end.facts.certificate);
		}
		end_close(&end);
	}
}

/* A client that has several certificates learns which one is wanted. */
static void
expect_asked_for(const struct tls_conf *near, const char *authority_name)
{
	static const int versions[] = { TLS1_2_VERSION, TLS1_3_VERSION };
	for (int i = 0; i < 2; i++) {
		struct end end;
		struct plain plain;
		char name[64];
		plain_context(&plain, false, &client);
		SSL_CTX_set_max_proto_version(plain.context, versions[i]);
		plain_begin(&plain, NULL);
		end_open(&end, near, FILTER_NEAR, "");
		talk_plain(&end, &plain);
		const STACK_OF(X509_NAME) *names = SSL_get0_peer_CA_list(plain.ssl);
		assert_int_equal(sk_X509_NAME_num(names), 1);
		X509_NAME_get_text_by_NID(sk_X509_NAME_value(names, 0), NID_commonName, name,
					  sizeof(name));
		assert_string_equal(name, authority_name);
		end_close(&end);
		plain_close(&plain);
	}
}

static void
test_client_certificates(void **unused)
{
	(void)unused;
	struct tls_conf *required =
		SECTION({ "certificate", "server.pem" }, { "client_ca", "ca.pem" });
	struct tls_conf *optional = SECTION({ "certificate", "server.pem" },
					    { "client_ca", "ca.pem" }, { "verify", "optional" });
	struct tls_conf *none = SECTION({ "certificate", "server.pem" });
	char words[64], date[TLS_DATE_TEXT];
	snprintf(words, sizeof(words), "certificate expired %s",
		 tls_identity_date(X509_get0_notAfter(expired_client.certificate), date));
	struct paper self = paper_make((struct paper_plan){ .name = "self" });

	expect_let_in(required, &client, "client");
	expect_asked_for(required, "Test CA");
	expect_refused(required, &stranger, "unknown CA 'Other CA' of the certificate 'stranger'",
		       SSL_AD_UNKNOWN_CA);
	expect_refused(required, &expired_client, words, SSL_AD_CERTIFICATE_EXPIRED);
	expect_refused(required, &self, "certificate is self-signed and not known here: 'self'",
		       SSL_AD_UNKNOWN_CA);

	expect_let_in(optional, &client, "client");
	expect_let_in(optional, NULL, NULL);
	expect_refused(optional, &stranger, "unknown CA", SSL_AD_UNKNOWN_CA);
	expect_let_in(none, &stranger, NULL);

	struct end end;
	assert_int_equal(meet(&end, required, NULL, TLS1_3_VERSION), SSL_AD_CERTIFICATE_REQUIRED);
	assert_refused(&end, "no certificate was sent");
	end_close(&end);
	assert_int_equal(meet(&end, required, NULL, TLS1_2_VERSION), SSL_AD_HANDSHAKE_FAILURE);
	assert_refused(&end, "no certificate was sent");
	end_close(&end);
	paper_free(&self);
	discard(required);
	discard(optional);
	discard(none);
}

/* Whom words are about: who has no common name has another one. */
static void
test_strangers_names(void **unused)
{
	static const struct {
		const char *name, *others, *called;
	} cases[] = {
		{ "M\xc3\xbcller", NULL, "'M\xc3\xbcller'" },
		{ "a\nb'", NULL, "'a?b'" },
		{ "", "DNS:node.example,DNS:other.example", "'node.example'" },
		{ "", "URI:spiffe://example/node", "'spiffe://example/node'" },
		{ "", "email:ops@example", "'ops@example'" },
		{ "", "IP:192.0.2.9", "'192.0.2.9'" },
		{ "", NULL, "'without a name'" },
	};
	(void)unused;
	struct tls_conf *near = SECTION({ "certificate", "server.pem" }, { "client_ca", "ca.pem" });
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct end end;
		struct paper paper = paper_make((struct paper_plan){ .name = cases[i].name,
								     .others = cases[i].others,
								     .issuer = &other_authority });
		meet(&end, near, &paper, TLS1_3_VERSION);
		assert_refused(&end, cases[i].called);
		end_close(&end);
		paper_free(&paper);
	}
	discard(near);
}

/* Ciphers without authentication, if an operator asks for them, let nobody in where a certificate is
 * required. */
static void
test_anonymous_ciphers(void **unused)
{
	static const char ciphers[] = "AECDH-AES128-SHA:@SECLEVEL=0";
	(void)unused;
	struct tls_conf *conf =
		SECTION({ "certificate", "server.pem" }, { "client_ca", "ca.pem" },
			{ "ca", "ca.pem" }, { "ciphers", ciphers }, { "max_version", "1.2" });
	for (enum filter_side side = FILTER_NEAR; side <= FILTER_FAR; side++) {
		struct end end;
		struct plain plain;
		plain_context(&plain, side == FILTER_FAR, NULL);
		SSL_CTX_set_cipher_list(plain.context, ciphers);
		plain_begin(&plain, NULL);
		end_open(&end, conf, side, "server.example");
		talk_plain(&end, &plain);
		assert_refused(&end, side == FILTER_FAR ? "no certificate was sent" : "the peer");
		end_close(&end);
		plain_close(&plain);
	}
	discard(conf);
}

static void
spki_of(const struct paper *paper, char text[80])
{
	unsigned char *bytes = NULL, hash[32];
	int length = i2d_PUBKEY(paper->key, &bytes);
	EVP_Digest(bytes, (size_t)length, hash, NULL, EVP_sha256(), NULL);
	OPENSSL_free(bytes);
	strcpy(text, "sha256/");
	for (size_t i = 0; i < sizeof(hash); i++)
		snprintf(text + 7 + 2 * i, 3, "%02x", hash[i]);
}

static void
test_allow(void **unused)
{
	char key[80], spki[96];
	(void)unused;
	spki_of(&client, key);
	snprintf(spki, sizeof(spki), "spki:%s", key);
	const char *const fitting[] = { "cn:client",          "ou:Branch",
					"dns:CLIENT.example", "uri:spiffe://example/client",
					"ip:192.0.2.7",       spki };
	const char *const others[] = {
		"cn:clien",   "cn:client2",
		"ou:branch",  "dns:example",
		"uri:client", "ip:192.0.2.8",
		"dns:client", "spki:sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	};
	for (size_t i = 0; i < sizeof(fitting) / sizeof(fitting[0]); i++) {
		struct tls_conf *near =
			SECTION({ "certificate", "server.pem" }, { "client_ca", "ca.pem" },
				{ "allow", "cn:nobody" }, { "allow", fitting[i] });
		expect_let_in(near, &client, "client");
		discard(near);
	}
	for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) {
		struct tls_conf *near = SECTION({ "certificate", "server.pem" },
						{ "client_ca", "ca.pem" }, { "allow", others[i] });
		expect_refused(near, &client, "nothing in allow fits the certificate 'client'",
			       SSL_AD_BAD_CERTIFICATE);
		discard(near);
	}
}

/* Each of the units in a subject, and each of the names of a kind, counts. */
static void
test_allow_looks_at_all_names(void **unused)
{
	static const char *const rules[] = { "ou:first",      "ou:second", "dns:a.example",
					     "dns:b.example", "uri:x:b",   "cn:other" };
	(void)unused;
	struct paper paper = paper_make(
		(struct paper_plan){ .name = "several",
				     .unit = "first",
				     .others = "DNS:a.example,URI:x:a,DNS:b.example,URI:x:b",
				     .issuer = &authority });
	X509_NAME *subject = X509_get_subject_name(paper.certificate);
	X509_NAME_add_entry_by_txt(subject, "OU", MBSTRING_UTF8, (const unsigned char *)"second",
				   -1, -1, 0);
	X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_UTF8, (const unsigned char *)"other", -1,
				   -1, 0);
	X509_sign(paper.certificate, authority.key, EVP_sha256());
	for (size_t i = 0; i < sizeof(rules) / sizeof(rules[0]); i++) {
		struct tls_conf *near = SECTION({ "certificate", "server.pem" },
						{ "client_ca", "ca.pem" }, { "allow", rules[i] });
		expect_let_in(near, &paper, "several");
		discard(near);
	}
	paper_free(&paper);
}

/* What a peer shows is read up to 100 KiB, as penstock.conf(5) says, and no further. */
static void
test_long_chains(void **unused)
{
	enum { MOST = 100 * 1024 };
	(void)unused;
	struct tls_conf *near = SECTION({ "certificate", "server.pem" }, { "client_ca", "ca.pem" });
	struct tls_conf *far = SECTION({ "ca", "ca.pem" }, { "server_name", "server.example" });
	for (int is_longer = 0; is_longer < 2; is_longer++) {
		char *names = malloc(2 * MOST);
		size_t length = (size_t)sprintf(names, "DNS:server.example");
		while (length < (is_longer ? MOST + 1024 : MOST - 20 * 1024))
			length += (size_t)sprintf(names + length, ",URI:x:%01000d", 0);
		struct paper paper = paper_make((struct paper_plan){
			.name = "long", .others = names, .issuer = &authority });
		struct end ends[2];
		meet(&ends[FILTER_NEAR], near, &paper, TLS1_3_VERSION);
		ask(&ends[FILTER_FAR], far, "server.example", &paper);
		for (int side = 0; side < 2; side++) {
			if (is_longer)
				assert_refused(&ends[side],
					       "the peer sends too long a chain of certificates");
			else
				assert_ready(&ends[side]);
			end_close(&ends[side]);
		}
		paper_free(&paper);
		free(names);
	}
	discard(near);
	discard(far);
}

/* A name ends where its length says, and not at a zero byte. */
static void
test_allow_and_zero_bytes(void **unused)
{
	static const char *const rules[] = { "cn:client", "dns:client.example" };
	(void)unused;
	struct paper paper = paper_make((struct paper_plan){ .name = "", .issuer = &authority });
	X509_NAME_add_entry_by_txt(X509_get_subject_name(paper.certificate), "CN", MBSTRING_UTF8,
				   (const unsigned char *)"client\0x", 8, -1, 0);
	GENERAL_NAMES *names = GENERAL_NAMES_new();
	GENERAL_NAME *name = GENERAL_NAME_new();
	ASN1_IA5STRING *text = ASN1_IA5STRING_new();
	ASN1_STRING_set(text, "client.example\0x", 16);
	GENERAL_NAME_set0_value(name, GEN_DNS, text);
	sk_GENERAL_NAME_push(names, name);
	X509_add1_ext_i2d(paper.certificate, NID_subject_alt_name, names, 0, 0);
	GENERAL_NAMES_free(names);
	X509_sign(paper.certificate, authority.key, EVP_sha256());
	for (size_t i = 0; i < 2; i++) {
		struct tls_conf *near = SECTION({ "certificate", "server.pem" },
						{ "client_ca", "ca.pem" }, { "allow", rules[i] });
		expect_refused(near, &paper, "nothing in allow fits the certificate 'client?x'",
			       SSL_AD_BAD_CERTIFICATE);
		discard(near);
	}
	struct tls_conf *near = SECTION({ "certificate", "server.pem" }, { "client_ca", "ca.pem" });
	struct end end;
	meet(&end, near, &paper, TLS1_3_VERSION);
	assert_ready(&end);
	assert_null(end.facts.common_name);
	end_close(&end);
	paper_free(&paper);

	/* Nor is it another's name that was known before. */
	struct plain plain;
	paper = paper_make((struct paper_plan){ .name = "", .issuer = &authority });
	plain_context(&plain, false, &paper);
	plain_begin(&plain, NULL);
	end_open(&end, near, FILTER_NEAR, "");
	facts_set(&end.facts.common_name, "another", 7);
	talk_plain(&end, &plain);
	assert_ready(&end);
	assert_non_null(end.facts.certificate);
	assert_null(end.facts.common_name);
	end_close(&end);
	plain_close(&plain);
	discard(near);
	paper_free(&paper);
}

/* Appends to the file. */
static void
write_crl_of(const struct paper *issuer, const char *name, const struct paper *revoked, long days,
	     bool has_key)
{
	X509_CRL *crl = X509_CRL_new();
	ASN1_TIME *last = X509_gmtime_adj(NULL, -86400 * 5),
		  *next = X509_gmtime_adj(NULL, days * 86400);
	X509_CRL_set_version(crl, 1);
	X509_CRL_set_issuer_name(crl, X509_get_subject_name(issuer->certificate));
	X509_CRL_set1_lastUpdate(crl, last);
	X509_CRL_set1_nextUpdate(crl, next);
	if (revoked) {
		X509_REVOKED *entry = X509_REVOKED_new();
		X509_REVOKED_set_serialNumber(entry, X509_get_serialNumber(revoked->certificate));
		X509_REVOKED_set_revocationDate(entry, last);
		X509_CRL_add0_revoked(crl, entry);
	}
	X509V3_CTX context;
	X509V3_set_ctx(&context, issuer->certificate, NULL, NULL, crl, 0);
	X509_EXTENSION *key =
		X509V3_EXT_conf_nid(NULL, &context, NID_authority_key_identifier, "keyid:always");
	assert_true(key && (!has_key || X509_CRL_add_ext(crl, key, -1)));
	X509_EXTENSION_free(key);
	assert_true(X509_CRL_sign(crl, issuer->key, EVP_sha256()) > 0);
	FILE *file = fopen(world_path(name), "a");
	assert_non_null(file);
	assert_true(PEM_write_X509_CRL(file, crl));
	fclose(file);
	ASN1_TIME_free(last);
	ASN1_TIME_free(next);
	X509_CRL_free(crl);
}

static void
write_crl(const char *name, const struct paper *revoked, long days)
{
	text_write(name, "");
	write_crl_of(&authority, name, revoked, days, true);
}

/* An authority that is trusted though it is no root needs nobody's list that speaks for it; where there is
 * one, it counts. Lists tell by a key whose they are, or only by name. */
static void
test_revocation_below_the_root(void **unused)
{
	(void)unused;
	struct paper middle = paper_make(
		(struct paper_plan){ .name = "middle", .is_ca = true, .issuer = &authority });
	struct paper leaf = paper_make((struct paper_plan){ .name = "leaf", .issuer = &middle });
	const struct paper *const nobody = &server;
	const struct {
		const struct paper *by_middle, *by_root; /* whom the list revokes; NULL = no list */
		const char *words;                       /* NULL = let in */
		int alert;
	} cases[] = {
		{ nobody, NULL, NULL, 0 },
		{ nobody, nobody, NULL, 0 },
		{ &leaf, NULL, "certificate revoked: 'leaf'", SSL_AD_CERTIFICATE_REVOKED },
		{ nobody, &middle, "certificate revoked: 'middle'", SSL_AD_CERTIFICATE_REVOKED },
		{ NULL, nobody, "no CRL here says whether the certificate is revoked: 'leaf'",
		  SSL_AD_UNKNOWN_CA },
	};
	paper_write("middle.pem", "w", middle.certificate, NULL);
	paper_write("both.pem", "w", authority.certificate, NULL);
	paper_write("both.pem", "a", middle.certificate, NULL);
	for (size_t i = 0; i < 4 * sizeof(cases) / sizeof(cases[0]); i++) {
		bool has_key = i & 1;
		text_write("crl.pem", "");
		if (cases[i / 4].by_middle)
			write_crl_of(&middle, "crl.pem", cases[i / 4].by_middle, 7, has_key);
		if (cases[i / 4].by_root)
			write_crl_of(&authority, "crl.pem", cases[i / 4].by_root, 7, has_key);
		struct tls_conf *near = SECTION({ "certificate", "server.pem" },
						{ "client_ca", i & 2 ? "both.pem" : "middle.pem" },
						{ "crl", "crl.pem" });
		if (cases[i / 4].words)
			expect_refused(near, &leaf, cases[i / 4].words, cases[i / 4].alert);
		else
			expect_let_in(near, &leaf, "leaf");
		discard(near);
	}
	paper_free(&leaf);
	paper_free(&middle);
}

/* Where the trusted one is a root, all below it need a list that speaks for them. */
static void
test_revocation_of_each_in_the_chain(void **unused)
{
	(void)unused;
	struct paper middle = paper_make(
		(struct paper_plan){ .name = "middle", .is_ca = true, .issuer = &authority });
	struct paper low =
		paper_make((struct paper_plan){ .name = "low", .is_ca = true, .issuer = &middle });
	struct paper leaf = paper_make((struct paper_plan){ .name = "leaf", .issuer = &low });
	const struct paper *const issuers[] = { &low, &middle, &authority };
	for (int missing = 0; missing <= 3; missing++) {
		for (int version = TLS1_2_VERSION; version <= TLS1_3_VERSION; version++) {
			struct end end;
			struct plain plain;
			text_write("crl.pem", "");
			for (int i = 0; i < 3; i++)
				if (i != missing)
					write_crl_of(issuers[i], "crl.pem", NULL, 7, true);
			struct tls_conf *near =
				SECTION({ "certificate", "server.pem" }, { "client_ca", "ca.pem" },
					{ "crl", "crl.pem" });
			plain_context(&plain, false, &leaf);
			SSL_CTX_add1_chain_cert(plain.context, low.certificate);
			SSL_CTX_add1_chain_cert(plain.context, middle.certificate);
			SSL_CTX_set_max_proto_version(plain.context, version);
			plain_begin(&plain, NULL);
			end_open(&end, near, FILTER_NEAR, "");
			talk_plain(&end, &plain);
			if (missing == 3)
				assert_ready(&end);
			else
				assert_refused(&end, "no CRL here says whether the certificate is "
						     "revoked");
			end_close(&end);
			plain_close(&plain);
			discard(near);
		}
	}
	paper_free(&leaf);
	paper_free(&low);
	paper_free(&middle);
}

static void
test_revocation(void **unused)
{
	(void)unused;
	write_crl("crl.pem", &client, 7);
	write_crl("empty-crl.pem", NULL, 7);
	struct tls_conf *near = SECTION({ "certificate", "server.pem" }, { "client_ca", "ca.pem" },
					{ "crl", "crl.pem" });
	expect_refused(near, &client, "certificate revoked: 'client'", SSL_AD_CERTIFICATE_REVOKED);
	discard(near);
	near = SECTION({ "certificate", "server.pem" }, { "client_ca", "ca.pem" },
		       { "crl", "empty-crl.pem" });
	expect_let_in(near, &client, "client");
	discard(near);
}

/* --- Towards a server --------------------------------------------------------------------------- */

static void
test_server_is_verified(void **unused)
{
	(void)unused;
	struct tls_conf *far = SECTION({ "ca", "ca.pem" });
	struct tls_conf *named = SECTION({ "ca", "ca.pem" }, { "server_name", "server.example" });
	struct tls_conf *system = SECTION({ "verify", "required" });
	struct tls_conf *none = SECTION({ "verify", "none" });
	struct paper bare_name =
		paper_make((struct paper_plan){ .name = "bare", .issuer = &authority });
	struct paper star = paper_make(
		(struct paper_plan){ .name = "star",
				     .others = "DNS:*.wild.example,DNS:web*.part.example",
				     .issuer = &authority });
	struct {
		const struct tls_conf *conf;
		const char *target;
		const struct paper *paper;
		const char *words; /* NULL = accepted */
	} cases[] = {
		{ far, "server.example", &server, NULL },
		{ far, "192.0.2.1", &server, NULL },
		{ named, "10.0.0.1", &server, NULL },
		{ named, "", &server, NULL },
		{ far, "other.example", &server,
		  "certificate is for 'server.example' and 1 more, not for other.example" },
		{ far, "192.0.2.2", &server, "not for 192.0.2.2" },
		{ far, "server", &bare_name, "certificate is for 'bare', not for server" },
		{ far, "a.wild.example", &star, NULL },
		{ far, "a.b.wild.example", &star, "not for a.b.wild.example" },
		{ far, "wild.example", &star, "not for wild.example" },
		{ far, "web1.part.example", &star, "not for web1.part.example" },
		{ far, "server.example", &stranger, "unknown CA 'Other CA'" },
		{ system, "server.example", &server, "unknown CA 'Test CA'" },
		{ none, "x.example", &stranger, NULL },
		{ none, "", &stranger, NULL },
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct end end;
		ask(&end, cases[i].conf, cases[i].target, cases[i].paper);
		if (cases[i].words)
			assert_refused(&end, cases[i].words);
		else
			assert_ready(&end);
		end_close(&end);
	}
	discard(far);
	discard(named);
	discard(system);
	discard(none);
	paper_free(&bare_name);
	paper_free(&star);
}

/* RFC 6066 section 3: no dot at the end, neither asked for nor looked for in the certificate. */
static void
test_absolute_names(void **unused)
{
	(void)unused;
	struct tls_conf *far = SECTION({ "ca", "ca.pem" });
	struct tls_conf *named = SECTION({ "ca", "ca.pem" }, { "server_name", "server.example." });
	const struct {
		const struct tls_conf *conf;
		const char *target;
	} cases[] = { { far, "server.example." }, { named, "10.0.0.1" } };
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct plain plain;
		struct end end;
		plain_context(&plain, true, &server);
		plain_begin(&plain, NULL);
		end_open(&end, cases[i].conf, FILTER_FAR, cases[i].target);
		talk_plain(&end, &plain);
		assert_ready(&end);
		assert_string_equal(SSL_get_servername(plain.ssl, TLSEXT_NAMETYPE_host_name),
				    "server.example");
		plain_close(&plain);
		end_close(&end);
	}
	discard(far);
	discard(named);
}

static void
test_no_name_to_check(void **unused)
{
	(void)unused;
	struct tls_conf *far = SECTION({ "ca", "ca.pem" });
	struct facts facts = { .target_host = "" };
	struct failure why;
	assert_null(registry_find("tls")->open(far, FILTER_FAR, &facts, &why));
	assert_non_null(strstr(why.text, "write server_name"));
	discard(far);
}

static void
test_pins(void **unused)
{
	char key[80], wrong[80];
	(void)unused;
	spki_of(&server, key);
	spki_of(&stranger, wrong);
	struct tls_conf *both = SECTION({ "ca", "ca.pem" }, { "pin", wrong }, { "pin", key });
	struct tls_conf *alone = SECTION({ "verify", "none" }, { "pin", key });
	struct tls_conf *other = SECTION({ "ca", "ca.pem" }, { "pin", wrong });
	struct end end;
	ask(&end, both, "server.example", &server);
	assert_ready(&end);
	end_close(&end);
	ask(&end, alone, "", &server);
	assert_ready(&end);
	end_close(&end);
	ask(&end, alone, "", &stranger);
	assert_refused(&end, "no pin fits the key of the certificate 'stranger'");
	end_close(&end);
	ask(&end, other, "server.example", &server);
	assert_refused(&end, "no pin fits the key of the certificate 'server'");
	end_close(&end);
	/* Of a client whom a pin alone lets in the key is known, not the name it gives itself. */
	struct tls_conf *near =
		SECTION({ "certificate", "server.pem" }, { "verify", "none" }, { "pin", wrong });
	meet(&end, near, &stranger, TLS1_3_VERSION);
	assert_ready(&end);
	assert_string_equal(end.facts.certificate, wrong);
	assert_null(end.facts.common_name);
	end_close(&end);
	discard(near);
	discard(both);
	discard(alone);
	discard(other);
}

static void
test_own_certificate(void **unused)
{
	(void)unused;
	struct tls_conf *near = SECTION({ "certificate", "server.pem" }, { "client_ca", "ca.pem" });
	struct tls_conf *far = SECTION({ "ca", "ca.pem" }, { "certificate", "client.pem" });
	struct tls_conf *bare = SECTION({ "ca", "ca.pem" });
	struct end left, right;
	end_open(&left, near, FILTER_NEAR, "");
	end_open(&right, far, FILTER_FAR, "server.example");
	talk(&left, &right);
	assert_ready(&left);
	assert_ready(&right);
	assert_string_equal(left.facts.common_name, "client");
	end_close(&left);
	end_close(&right);

	end_open(&left, near, FILTER_NEAR, "");
	end_open(&right, bare, FILTER_FAR, "server.example");
	talk(&left, &right);
	assert_refused(&left, "no certificate was sent");
	assert_refused(&right, "the peer refuses: certificate required");
	end_close(&left);
	end_close(&right);
	discard(near);
	discard(far);
	discard(bare);
}

/* --- OCSP --------------------------------------------------------------------------------------- */

/* From and to so many days from now. */
static void
write_ocsp_that(int status, const char *name, const struct paper *about, long from, long to)
{
	OCSP_BASICRESP *basic = OCSP_BASICRESP_new();
	OCSP_CERTID *id = OCSP_cert_to_id(NULL, about->certificate, authority.certificate);
	ASN1_TIME *this = X509_gmtime_adj(NULL, from * 86400),
		  *next = X509_gmtime_adj(NULL, to * 86400);
	assert_non_null(OCSP_basic_add1_status(basic, id, status, 0,
					       status == V_OCSP_CERTSTATUS_REVOKED ? this : NULL,
					       this, next));
	assert_true(OCSP_basic_sign(basic, authority.certificate, authority.key, EVP_sha256(), NULL,
				    0));
	OCSP_RESPONSE *response = OCSP_response_create(OCSP_RESPONSE_STATUS_SUCCESSFUL, basic);
	unsigned char *bytes = NULL;
	int length = i2d_OCSP_RESPONSE(response, &bytes);
	FILE *file = fopen(world_path(name), "w");
	assert_non_null(file);
	assert_int_equal(fwrite(bytes, 1, (size_t)length, file), length);
	OPENSSL_free(bytes);
	fclose(file);
	OCSP_RESPONSE_free(response);
	OCSP_BASICRESP_free(basic);
	OCSP_CERTID_free(id);
	ASN1_TIME_free(this);
	ASN1_TIME_free(next);
}

static void
write_ocsp(const char *name, const struct paper *about, long from, long to)
{
	write_ocsp_that(V_OCSP_CERTSTATUS_GOOD, name, about, from, to);
}

/* Shown with the certificate that it is about, byte for byte, until it expires. */
static void
test_ocsp(void **unused)
{
	(void)unused;
	write_ocsp("ocsp.der", &server, -5, 3);
	struct tls_conf *near =
		SECTION({ "certificate", "server.pem" }, { "certificate", "server-rsa.pem" },
			{ "ocsp", "ocsp.der" });
	for (int i = 0; i < 6; i++) {
		bool is_rsa = i & 1, has_expired = i / 2 == 2;
		struct end end;
		struct plain plain;
		const unsigned char *answer;
		plain_context(&plain, false, NULL);
		SSL_CTX_set_max_proto_version(plain.context,
					      i / 2 ? TLS1_3_VERSION : TLS1_2_VERSION);
		if (has_expired)
			near->identities.at[0].staple_until = time(NULL);
		SSL_CTX_set_tlsext_status_type(plain.context, TLSEXT_STATUSTYPE_ocsp);
		SSL_CTX_set1_sigalgs_list(plain.context,
					  is_rsa ? "RSA-PSS+SHA256" : "ECDSA+SHA256");
		plain_begin(&plain, NULL);
		end_open(&end, near, FILTER_NEAR, "");
		talk_plain(&end, &plain);
		assert_ready(&end);
		long length = SSL_get_tlsext_status_ocsp_resp(plain.ssl, &answer);
		if (is_rsa || has_expired) { /* about the RSA one there is no answer */
			assert_true(length <= 0);
		} else {
			assert_int_equal(length, near->identities.at[0].staple_length);
			assert_memory_equal(answer, near->identities.at[0].staple, (size_t)length);
		}
		end_close(&end);
		plain_close(&plain);
	}
	discard(near);
}

/* --- Shared secrets ----------------------------------------------------------------------------- */

static const char *psk_identity;
static unsigned char psk_key[16];

static unsigned int
on_psk(SSL *ssl, const char *hint, char *identity, unsigned int identity_most, unsigned char *key,
       unsigned int most)
{
	(void)ssl;
	(void)hint;
	(void)most;
	snprintf(identity, identity_most, "%s", psk_identity);
	memcpy(key, psk_key, sizeof(psk_key));
	return sizeof(psk_key);
}

static void
meet_psk(struct end *end, const struct tls_conf *near, const char *identity, unsigned char first,
	 int version)
{
	struct plain plain;
	plain_context(&plain, false, NULL);
	psk_identity = identity;
	for (size_t i = 0; i < sizeof(psk_key); i++)
		psk_key[i] = (unsigned char)(i + first);
	SSL_CTX_set_psk_client_callback(plain.context, on_psk);
	SSL_CTX_set_cipher_list(plain.context, "PSK");
	SSL_CTX_set_max_proto_version(plain.context, version);
	plain_begin(&plain, NULL);
	end_open(end, near, FILTER_NEAR, "");
	talk_plain(end, &plain);
	if (version == TLS1_2_VERSION && !end->has_failed)
		assert_string_equal(SSL_get_cipher_name(plain.ssl), "ECDHE-PSK-CHACHA20-POLY1305");
	plain_close(&plain);
}

static void
test_psk(void **unused)
{
	(void)unused;
	struct tls_conf *near = SECTION({ "psk", "psk" });
	struct tls_conf *far = SECTION({ "psk", "psk" }, { "psk_identity", "site-b" });
	struct tls_conf *old = SECTION({ "psk", "psk" }, { "max_version", "1.2" });
	struct end end, left, right;
	static const int versions[] = { TLS1_2_VERSION, TLS1_3_VERSION };
	for (int i = 0; i < 2; i++) {
		uint64_t before = tls_counters_read(FILTER_NEAR, TLS_PSK);
		meet_psk(&end, near, "site-a", 0, versions[i]);
		assert_ready(&end);
		assert_int_equal(tls_counters_read(FILTER_NEAR, TLS_PSK), before + 1);
		end_close(&end);
		meet_psk(&end, near, "site-a", 1, versions[i]);
		assert_refused(&end, "the peer's shared secret is another");
		end_close(&end);
		before = tls_counters_read_failures(FILTER_NEAR, TLS_BAD_SECRET);
		meet_psk(&end, near, "site-c", 0, versions[i]);
		assert_refused(&end, "the peer's PSK identity is unknown");
		assert_int_equal(tls_counters_read_failures(FILTER_NEAR, TLS_BAD_SECRET),
				 before + 1);
		end_close(&end);

		end_open(&left, near, FILTER_NEAR, "");
		end_open(&right, i ? far : old, FILTER_FAR, "");
		talk(&left, &right);
		assert_ready(&left);
		assert_ready(&right);
		end_close(&left);
		end_close(&right);
	}
	/* Identities that are nearly one, and longer than any. */
	char longest[201];
	memset(longest, 'a', sizeof(longest) - 1);
	longest[sizeof(longest) - 1] = '\0';
	const char *const others[] = { "site-", "site-aa", "SITE-A", " ", "site-a\n", longest };
	for (size_t i = 0; i < 2 * sizeof(others) / sizeof(others[0]); i++) {
		meet_psk(&end, near, others[i / 2], 0, versions[i % 2]);
		assert_refused(&end, "the peer's PSK identity is unknown");
		end_close(&end);
	}
	/* Who has no secret, and who shows a certificate in its place. */
	assert_int_equal(meet(&end, near, &client, TLS1_3_VERSION), SSL_AD_HANDSHAKE_FAILURE);
	assert_true(end.has_failed);
	end_close(&end);
	ask(&end, far, "server.example", &server);
	assert_refused(&end, "the peer shows a certificate");
	end_close(&end);
	discard(near);
	discard(far);
	discard(old);
}

/* --- Sessions ----------------------------------------------------------------------------------- */

/* Goes through a whole connection in which the server says something; whether it was resumed. */
static bool
visit(const struct tls_conf *near, struct plain *plain, const char *name)
{
	struct end end;
	plain_begin(plain, name);
	if (plain->session)
		SSL_set_session(plain->ssl, plain->session);
	end_open(&end, near, FILTER_NEAR, "");
	assert_talks(&end, plain);
	bool is_resumed = SSL_session_reused(plain->ssl);
	end_close(&end);
	plain_end(plain);
	return is_resumed;
}

static void
test_tickets(void **unused)
{
	static const int versions[] = { TLS1_2_VERSION, TLS1_3_VERSION };
	(void)unused;
	for (int i = 0; i < 4; i++) {
		struct tls_conf *near = SECTION(
			{ "certificate", "server.pem" }, { "client_ca", "ca.pem" },
			{ "tickets", i < 2 ? "true" : "false" }, { "session_lifetime", "10min" });
		struct plain plain;
		enum tls_counter kind = i < 2 ? TLS_TICKET : TLS_CACHE;
		uint64_t full = tls_counters_read(FILTER_NEAR, TLS_FULL);
		uint64_t resumed = tls_counters_read(FILTER_NEAR, kind);
		plain_context(&plain, false, &client);
		SSL_CTX_set_max_proto_version(plain.context, versions[i % 2]);
		assert_false(visit(near, &plain, "server.example"));
		assert_int_equal(plain.tickets, 1);
		assert_int_equal(SSL_SESSION_has_ticket(plain.session), i < 2 || i == 3);
		if (i != 2) /* without a ticket TLS 1.2 tells the client nothing of it */
			assert_int_equal(SSL_SESSION_get_ticket_lifetime_hint(plain.session), 600);
		assert_true(visit(near, &plain, "server.example"));
		assert_int_equal(tls_counters_read(FILTER_NEAR, TLS_FULL), full + 1);
		assert_int_equal(tls_counters_read(FILTER_NEAR, kind), resumed + 1);
		plain_close(&plain);
		discard(near);
	}
}

static void
test_no_sessions_at_all(void **unused)
{
	(void)unused;
	struct tls_conf *near = SECTION({ "certificate", "server.pem" }, { "tickets", "false" },
					{ "session_cache", "0" });
	struct plain plain;
	plain_context(&plain, false, NULL);
	assert_false(visit(near, &plain, NULL));
	assert_false(visit(near, &plain, NULL));
	assert_int_equal(plain.tickets, 0);
	plain_close(&plain);
	discard(near);
}

static void
test_ticket_waits_for_data(void **unused)
{
	(void)unused;
	struct tls_conf *near = SECTION({ "certificate", "server.pem" });
	struct end end;
	struct plain plain;
	begin_both(&end, &plain, near);
	talk_plain(&end, &plain);
	assert_int_equal(SSL_write(plain.ssl, "only from me", 12), 12);
	talk_plain(&end, &plain);
	assert_string_equal(end_heard(&end), "only from me");
	assert_int_equal(plain.tickets, 0);
	end_say(&end, "first");
	talk_plain(&end, &plain);
	assert_string_equal(plain.heard, "first");
	assert_int_equal(plain.tickets, 1);
	end_close(&end);
	plain_close(&plain);
	discard(near);
}

/* A section is configured again, as a reload does it, before the old one goes. */
static void
expect_after_reload(const struct setting *before, const struct setting *after,
		    const struct paper *paper, bool is_resumed, const char *words)
{
	static const int versions[] = { TLS1_2_VERSION, TLS1_3_VERSION };
	for (int i = 0; i < 2; i++) {
		struct tls_conf *old = section(before);
		struct plain plain;
		struct end end;
		plain_context(&plain, false, paper);
		SSL_CTX_set_max_proto_version(plain.context, versions[i]);
		visit(old, &plain, NULL);
		struct tls_conf *fresh = section(after);
		discard(old);
		plain_begin(&plain, NULL);
		SSL_set_session(plain.ssl, plain.session);
		end_open(&end, fresh, FILTER_NEAR, "");
		talk_plain(&end, &plain);
		if (words) {
			assert_refused(&end, words);
		} else {
			assert_ready(&end);
			assert_int_equal(SSL_session_reused(plain.ssl), is_resumed);
			assert_string_equal(end.facts.common_name, "client");
		}
		end_close(&end);
		plain_close(&plain);
		discard(fresh);
	}
}

#define LIST(...) ((const struct setting[SETTINGS]){ __VA_ARGS__ })

#define EDGE(...) LIST({ "certificate", "server.pem" }, { "tickets", tickets[i] }, __VA_ARGS__)

static void
test_sessions_across_reloads(void **unused)
{
	static const char *const tickets[] = { "true", "false" };
	(void)unused;
	write_crl("crl.pem", &client, 7);
	write_crl("empty-crl.pem", NULL, 7);
	for (int i = 0; i < 2; i++) {
		const struct setting *plain = EDGE({ "client_ca", "ca.pem" });
		expect_after_reload(plain, plain, &client, true, NULL);
		expect_after_reload(plain, EDGE({ "client_ca", "other-ca.pem" }), &client, false,
				    "unknown CA");
		expect_after_reload(plain, EDGE({ "client_ca", "ca.pem" }, { "crl", "crl.pem" }),
				    &client, false, "certificate revoked");
		expect_after_reload(plain,
				    EDGE({ "client_ca", "ca.pem" }, { "allow", "cn:nobody" }),
				    &client, false, "nothing in allow");
		expect_after_reload(plain,
				    EDGE({ "client_ca", "ca.pem" }, { "allow", "cn:client" }),
				    &client, false, NULL);
	}
}

/* A session that could be taken up until that time. */
static SSL_SESSION *
session_until(long end_s)
{
	SSL_SESSION *session = SSL_SESSION_new();
	assert_non_null(session);
	assert_int_equal(SSL_SESSION_set1_id(session, (const unsigned char *)"id", 2), 1);
	SSL_SESSION_set_time(session, end_s - 3600);
	SSL_SESSION_set_timeout(session, 3600);
	return session;
}

static bool
is_kept(struct tls_sessions *sessions, const char *name)
{
	SSL_SESSION *session = tls_sessions_get(sessions, name, strlen(name));
	SSL_SESSION_free(session);
	return session;
}

static void
test_so_many_sessions_are_kept(void **unused)
{
	const unsigned char id[TLS_ID_BYTES] = { 1 };
	SSL_SESSION *good = session_until(time(NULL) + 600), *over = session_until(time(NULL) - 1);
	(void)unused;
	struct tls_sessions *sessions = tls_sessions_hold(id, 3);
	tls_sessions_put(sessions, "a", 1, good);
	tls_sessions_put(sessions, "b", 1, good);
	tls_sessions_put(sessions, "ab", 2, good);
	tls_sessions_put(sessions, "a", 1, good); /* is the newest now */
	assert_true(is_kept(sessions, "a") && is_kept(sessions, "b") && is_kept(sessions, "ab"));
	tls_sessions_put(sessions, "c", 1, over);
	assert_false(is_kept(sessions, "b"));
	assert_false(is_kept(sessions, "c"));
	assert_true(is_kept(sessions, "a") && is_kept(sessions, "ab"));

	struct tls_sessions *again = tls_sessions_hold(id, 2);
	tls_sessions_release(sessions);
	tls_sessions_put(again, "d", 1, good);
	assert_true(is_kept(again, "d"));
	assert_false(is_kept(again, "a") || is_kept(again, "ab"));
	tls_sessions_put(again, "e", 1, good);
	assert_true(is_kept(again, "d") && is_kept(again, "e"));
	tls_sessions_release(again);
	again = tls_sessions_hold(id, 2); /* nobody held it: gone */
	assert_false(is_kept(again, "d") || is_kept(again, "e"));
	tls_sessions_release(again);
	SSL_SESSION_free(good);
	SSL_SESSION_free(over);
}

static void
test_ticket_keys_rotate(void **unused)
{
	const unsigned char id[TLS_ID_BYTES] = { 1 }, other_id[TLS_ID_BYTES] = { 2 };
	const uint64_t hour = UINT64_C(3600000000000);
	uint64_t now = UINT64_MAX / 2;
	struct tls_ticket_key first, second, third, found;
	bool is_newest;
	(void)unused;
	struct tls_tickets *tickets = tls_tickets_hold(id, hour);
	struct tls_tickets *other = tls_tickets_hold(other_id, hour);
	assert_int_equal(tls_tickets_newest(tickets, now, &first), 0);
	assert_int_equal(tls_tickets_newest(tickets, now + hour - 1, &second), 0);
	assert_memory_equal(&first, &second, sizeof(first));
	assert_true(tls_tickets_find(tickets, now + hour - 1, first.name, &found, &is_newest));
	assert_true(is_newest);
	assert_false(tls_tickets_find(other, now, first.name, &found, &is_newest));

	assert_true(tls_tickets_find(tickets, now + hour, first.name, &found, &is_newest));
	assert_false(is_newest); /* whoever comes with it gets a fresh one */
	assert_int_equal(tls_tickets_newest(tickets, now + hour, &second), 0);
	assert_memory_not_equal(&first, &second, sizeof(first));
	assert_true(tls_tickets_find(tickets, now + 2 * hour - 1, first.name, &found, &is_newest));
	assert_memory_equal(&first, &found, sizeof(first));
	assert_false(tls_tickets_find(tickets, now + 2 * hour, first.name, &found, &is_newest));

	/* A reload: the new one holds before the old one lets go. */
	struct tls_tickets *again = tls_tickets_hold(id, hour);
	tls_tickets_release(tickets);
	assert_true(tls_tickets_find(again, now + 2 * hour, second.name, &found, &is_newest));
	tls_tickets_release(again);
	again = tls_tickets_hold(id, hour); /* nobody held it: gone */
	assert_false(tls_tickets_find(again, now + 2 * hour, second.name, &found, &is_newest));
	assert_int_equal(tls_tickets_newest(again, now, &third), 0);
	assert_memory_not_equal(&third, &second, sizeof(third));
	tls_tickets_release(again);
	tls_tickets_release(other);
}

/* Comes back in TLS 1.2, and has to be taken up; whether that brought another ticket, which is kept. OpenSSL
 * tells its callback nothing of one that comes so. */
static bool
gets_another_ticket(const struct tls_conf *near, struct plain *plain)
{
	struct end end;
	const unsigned char *before, *now;
	size_t before_length, length;
	plain_begin(plain, NULL);
	SSL_set_session(plain->ssl, plain->session);
	end_open(&end, near, FILTER_NEAR, "");
	assert_talks(&end, plain);
	assert_true(SSL_session_reused(plain->ssl));
	SSL_SESSION *session = SSL_get1_session(plain->ssl);
	SSL_SESSION_get0_ticket(plain->session, &before, &before_length);
	SSL_SESSION_get0_ticket(session, &now, &length);
	bool is_another = length != before_length || memcmp(now, before, length) != 0;
	end_close(&end);
	plain_end(plain);
	SSL_SESSION_free(plain->session);
	plain->session = session;
	return is_another;
}

/* Time goes by for the key of a ticket: it is renewed, still read, and then read no more. */
static void
test_tickets_of_old_keys(void **unused)
{
	(void)unused;
	struct tls_conf *near = SECTION({ "certificate", "server.pem" }, { "max_version", "1.2" },
					{ "session_lifetime", "1h" });
	const unsigned char *id = ((struct tls_lasting *)near->keys)->id;
	struct tls_ticket_key key;
	struct plain plain;
	plain_context(&plain, false, NULL);
	assert_int_equal(tls_tickets_newest(near->keys, clock_now_ns() - 90 * NS_PER_S, &key), 0);
	assert_false(visit(near, &plain, NULL));
	assert_false(gets_another_ticket(near, &plain));
	SSL_SESSION *first = plain.session;
	SSL_SESSION_up_ref(first);
	tls_tickets_release(tls_tickets_hold(id, 60 * NS_PER_S));
	assert_true(gets_another_ticket(near, &plain));
	assert_false(gets_another_ticket(near, &plain));
	tls_tickets_release(tls_tickets_hold(id, 40 * NS_PER_S));
	assert_false(gets_another_ticket(near, &plain));
	SSL_SESSION_free(plain.session);
	plain.session = first;
	assert_false(visit(near, &plain, NULL));
	plain_close(&plain);
	discard(near);
}

/* One connection of the far filter to a plain server; whether it was resumed. */
static bool
visit_server(const struct tls_conf *far, struct plain *plain, const char *target)
{
	struct end end;
	plain_begin(plain, NULL);
	end_open(&end, far, FILTER_FAR, target);
	assert_talks(&end, plain);
	bool is_resumed = SSL_session_reused(plain->ssl);
	end_close(&end);
	plain_end(plain);
	return is_resumed;
}

static void
test_sessions_of_servers(void **unused)
{
	static const int versions[] = { TLS1_2_VERSION, TLS1_3_VERSION, TLS1_2_VERSION };
	(void)unused;
	for (int i = 0; i < 3; i++) {
		enum tls_counter kind = i < 2 ? TLS_TICKET : TLS_CACHE;
		struct tls_conf *far = SECTION({ "ca", "ca.pem" });
		struct tls_conf *other =
			SECTION({ "ca", "ca.pem" }, { "certificate", "client.pem" });
		struct plain plain;
		plain_context(&plain, true, &server);
		SSL_CTX_set_max_proto_version(plain.context, versions[i]);
		if (kind == TLS_CACHE)
			SSL_CTX_set_options(plain.context, SSL_OP_NO_TICKET);
		uint64_t resumed = tls_counters_read(FILTER_FAR, kind);
		assert_false(visit_server(far, &plain, "server.example"));
		assert_true(visit_server(far, &plain, "server.example"));
		assert_true(visit_server(far, &plain, "server.example"));
		assert_false(visit_server(far, &plain, "192.0.2.1"));
		assert_false(visit_server(other, &plain, "server.example"));
		struct tls_conf *reloaded = SECTION({ "ca", "ca.pem" });
		discard(far);
		assert_true(visit_server(reloaded, &plain, "server.example"));
		assert_int_equal(tls_counters_read(FILTER_FAR, kind), resumed + 3);
		plain_close(&plain);
		discard(reloaded);
		discard(other);
	}
}

static void
test_psk_tickets(void **unused)
{
	(void)unused;
	struct tls_conf *near = SECTION({ "psk", "psk" });
	struct plain plain;
	plain_context(&plain, false, NULL);
	psk_identity = "site-a";
	for (size_t i = 0; i < sizeof(psk_key); i++)
		psk_key[i] = (unsigned char)i;
	SSL_CTX_set_psk_client_callback(plain.context, on_psk);
	uint64_t psk = tls_counters_read(FILTER_NEAR, TLS_PSK);
	uint64_t resumed = tls_counters_read(FILTER_NEAR, TLS_TICKET);
	visit(near, &plain, NULL);
	assert_int_equal(plain.tickets, 1);
	visit(near, &plain, NULL);
	assert_int_equal(tls_counters_read(FILTER_NEAR, TLS_PSK), psk + 1);
	assert_int_equal(tls_counters_read(FILTER_NEAR, TLS_TICKET), resumed + 1);
	plain_close(&plain);
	discard(near);
}

/* Who comes back is judged by the rules, also if the session were found in spite of their change: with a
 * whole handshake and a clear alert. */
static void
test_rules_are_asked_again(void **unused)
{
	static const int versions[] = { TLS1_2_VERSION, TLS1_3_VERSION };
	(void)unused;
	for (int i = 0; i < 4; i++) {
		struct tls_conf *near =
			SECTION({ "certificate", "server.pem" }, { "client_ca", "ca.pem" },
				{ "tickets", i < 2 ? "true" : "false" }, { "allow", "cn:client" });
		struct plain plain;
		struct end end;
		plain_context(&plain, false, &client);
		SSL_CTX_set_max_proto_version(plain.context, versions[i % 2]);
		assert_false(visit(near, &plain, NULL));
		assert_true(visit(near, &plain, NULL));
		near->rules.allow[0].text = "nobody";
		plain_begin(&plain, NULL);
		SSL_set_session(plain.ssl, plain.session);
		end_open(&end, near, FILTER_NEAR, "");
		talk_plain(&end, &plain);
		assert_refused(&end, "nothing in allow fits the certificate 'client'");
		assert_int_equal(plain.alert, SSL_AD_BAD_CERTIFICATE);
		assert_false(SSL_session_reused(plain.ssl));
		end_close(&end);
		plain_close(&plain);
		discard(near);
	}
}

/* A server that begins to speak TLS 1.3 is met with the secret, whatever was spoken before. */
static void
test_psk_of_a_server_that_changes(void **unused)
{
	(void)unused;
	struct tls_conf *far = SECTION({ "psk", "psk" });
	struct tls_conf *old = SECTION({ "psk", "psk" }, { "max_version", "1.2" });
	struct tls_conf *young = SECTION({ "psk", "psk" });
	for (int i = 0; i < 4; i++) {
		struct end left, right;
		end_open(&left, i % 2 ? young : old, FILTER_NEAR, "");
		end_open(&right, far, FILTER_FAR, "");
		talk(&left, &right);
		assert_ready(&left);
		assert_ready(&right);
		end_say(&left, "hello");
		talk(&left, &right);
		assert_string_equal(end_heard(&right), "hello");
		end_finish(&left);
		end_finish(&right);
		talk(&left, &right);
		end_close(&left);
		end_close(&right);
	}
	discard(far);
	discard(old);
	discard(young);
}

/* A server has renewed its certificate: the session that saw the old one is not offered any more. */
static void
test_session_whose_certificate_has_expired(void **unused)
{
	static const int versions[] = { TLS1_2_VERSION, TLS1_3_VERSION };
	static const char name[] = "server.example server.example";
	(void)unused;
	for (int i = 0; i < 2; i++) {
		struct tls_conf *far = SECTION({ "ca", "ca.pem" });
		struct plain plain;
		plain_context(&plain, true, &server);
		SSL_CTX_set_max_proto_version(plain.context, versions[i]);
		assert_false(visit_server(far, &plain, "server.example"));
		SSL_SESSION *session = tls_sessions_get(far->sessions, name, strlen(name));
		assert_non_null(session);
		X509_gmtime_adj(X509_getm_notAfter(SSL_SESSION_get0_peer(session)), -60);
		SSL_SESSION_free(session);
		assert_false(visit_server(far, &plain, "server.example"));
		assert_true(visit_server(far, &plain, "server.example"));
		plain_close(&plain);
		discard(far);
	}
}

/* The system's authorities are others: what they vouched for is looked at again. */
static void
test_session_and_the_system_s_authorities(void **unused)
{
	struct plain plain;
	struct end end;
	(void)unused;
	paper_write("system.pem", "w", authority.certificate, NULL);
	setenv("SSL_CERT_FILE", world_path("system.pem"), 1);
	struct tls_conf *far = SECTION({ "ca", "system" });
	plain_context(&plain, true, &server);
	assert_false(visit_server(far, &plain, "server.example"));
	assert_true(visit_server(far, &plain, "server.example"));
	paper_write("other-system.pem", "w", other_authority.certificate, NULL);
	assert_int_equal(rename(world_path("other-system.pem"), world_path("system.pem")), 0);
	struct tls_conf *fresh = SECTION({ "ca", "system" });
	discard(far);
	plain_begin(&plain, NULL);
	end_open(&end, fresh, FILTER_FAR, "server.example");
	talk_plain(&end, &plain);
	assert_refused(&end, "unknown CA 'Test CA' of the certificate 'server'");
	end_close(&end);
	plain_close(&plain);
	discard(fresh);
	unsetenv("SSL_CERT_FILE");
}

/* What is not to be spoken any more is not spoken with a session from before either, and what a session
 * wants is not offered without it. */
static void
test_sessions_and_ciphers(void **unused)
{
	static const char *const ciphers[] = { "ECDHE-ECDSA-AES128-GCM-SHA256",
					       "ECDHE-ECDSA-AES256-GCM-SHA384" };
	struct tls_conf *near[2], *far[2];
	struct plain plain;
	(void)unused;
	for (int i = 0; i < 2; i++) {
		near[i] = SECTION({ "certificate", "server.pem" }, { "ciphers", ciphers[i] },
				  { "max_version", "1.2" });
		far[i] = SECTION({ "ca", "ca.pem" }, { "ciphers", ciphers[i] },
				 { "max_version", "1.2" });
	}
	plain_context(&plain, false, NULL);
	assert_false(visit(near[0], &plain, NULL));
	assert_true(visit(near[0], &plain, NULL));
	assert_false(visit(near[1], &plain, NULL));
	plain_close(&plain);

	plain_context(&plain, true, &server);
	assert_false(visit_server(far[0], &plain, "server.example"));
	assert_true(visit_server(far[0], &plain, "server.example"));
	assert_false(visit_server(far[1], &plain, "server.example"));
	plain_close(&plain);
	for (int i = 0; i < 2; i++) {
		discard(near[i]);
		discard(far[i]);
	}
}

/* A CRL that expires while we run speaks for nobody, whoever comes back included. */
static void
test_crl_that_expires_meanwhile(void **unused)
{
	(void)unused;
	write_crl("empty-crl.pem", NULL, 7);
	struct tls_conf *near = SECTION({ "certificate", "server.pem" }, { "client_ca", "ca.pem" },
					{ "crl", "empty-crl.pem" });
	struct plain plain;
	struct end end;
	plain_context(&plain, false, &client);
	assert_false(visit(near, &plain, NULL));
	assert_true(visit(near, &plain, NULL));
	ASN1_TIME *late = X509_gmtime_adj(NULL, -60);
	X509_CRL_set1_nextUpdate(sk_X509_CRL_value(near->rules.crls, 0), late);
	ASN1_TIME_free(late);
	plain_begin(&plain, NULL);
	SSL_set_session(plain.ssl, plain.session);
	end_open(&end, near, FILTER_NEAR, "");
	talk_plain(&end, &plain);
	assert_refused(&end, "the CRL has expired");
	end_close(&end);
	plain_close(&plain);
	discard(near);
}

/* Both ends count a ticket as one, though the secret is offered beside it. */
static void
test_psk_tickets_of_servers(void **unused)
{
	(void)unused;
	struct tls_conf *conf = SECTION({ "psk", "psk" });
	uint64_t psk = tls_counters_read(FILTER_FAR, TLS_PSK);
	uint64_t resumed = tls_counters_read(FILTER_FAR, TLS_TICKET);
	for (int i = 0; i < 2; i++) {
		struct end left, right;
		end_open(&left, conf, FILTER_NEAR, "");
		end_open(&right, conf, FILTER_FAR, "");
		talk(&left, &right);
		end_say(&left, "hello");
		talk(&left, &right);
		assert_string_equal(end_heard(&right), "hello");
		end_close(&left);
		end_close(&right);
	}
	assert_int_equal(tls_counters_read(FILTER_FAR, TLS_PSK), psk + 1);
	assert_int_equal(tls_counters_read(FILTER_FAR, TLS_TICKET), resumed + 1);
	discard(conf);
}

/* --- Ends --------------------------------------------------------------------------------------- */

static void
test_half_close(void **unused)
{
	static const char *const versions[] = { "1.2", "1.3" };
	(void)unused;
	for (int i = 0; i < 4; i++) {
		struct tls_conf *near = SECTION({ "certificate", "server.pem" });
		struct tls_conf *far =
			SECTION({ "ca", "ca.pem" }, { "max_version", versions[i % 2] });
		struct end left, right;
		end_open(&left, near, FILTER_NEAR, "");
		end_open(&right, far, FILTER_FAR, "server.example");
		struct end *first = i < 2 ? &left : &right, *second = i < 2 ? &right : &left;
		end_say(first, "and over");
		end_finish(first);
		talk(&left, &right);
		assert_string_equal(end_heard(second), "and over");
		assert_true(second->flows[FILTER_IN].ended);
		assert_true(first->flows[FILTER_OUT].ended);
		assert_false(first->flows[FILTER_IN].ended);
		for (int j = 0; j < 3; j++) {
			end_say(second, "still here");
			talk(&left, &right);
			assert_string_equal(end_heard(first), "still here");
		}
		end_finish(second);
		talk(&left, &right);
		assert_true(first->flows[FILTER_IN].ended);
		assert_true(second->flows[FILTER_OUT].ended);
		assert_false(left.has_failed || right.has_failed);
		end_close(&left);
		end_close(&right);
		discard(near);
		discard(far);
	}
}

static void
test_truncation(void **unused)
{
	(void)unused;
	for (int i = 0; i < 4; i++) {
		bool is_lenient = i & 1, is_cut = i & 2;
		struct tls_conf *near = SECTION({ "certificate", "server.pem" },
						{ "truncation", is_lenient ? "eof" : "reset" });
		struct end end;
		struct plain plain;
		begin_both(&end, &plain, near);
		assert_talks(&end, &plain);
		SSL_write(plain.ssl, "tail", 4);
		char bytes[256];
		int length = BIO_read(plain.out, bytes, sizeof(bytes));
		evbuffer_add(end.flows[FILTER_IN].src, bytes, (size_t)(length - is_cut));
		end.flows[FILTER_IN].flush = FILTER_FINISHED;
		end_step(&end);
		assert_string_equal(end_heard(&end), is_cut ? "" : "tail");
		assert_int_equal(end.has_failed, !is_lenient || is_cut);
		if (end.has_failed) {
			assert_int_equal(end.why.kind, FAILURE_TRUNCATED);
			assert_refused(&end, "close_notify");
		}
		end_close(&end);
		plain_close(&plain);
		discard(near);
	}
}

static void
test_other_protocols(void **unused)
{
	static const struct {
		const char *text, *words;
	} cases[] = {
		{ "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "the peer does not speak TLS but HTTP" },
		{ "SSH-2.0-OpenSSH_9.2p1\r\n", "the peer does not speak TLS" },
		{ "\x16\x16\x16\x16\x16\x16\x16\x16", "the peer does not speak TLS" },
		{ "220 mail.example ESMTP\r\n", "the peer does not speak TLS" },
		{ "\x80\x2e\1\2\1\1\x15\1\1\x10 and so on, as long as such a hello is ...",
		  "the peer" }, /* SSLv2 */
	};
	(void)unused;
	struct tls_conf *conf = SECTION({ "certificate", "server.pem" }, { "ca", "ca.pem" });
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		for (int side = 0; side < 2; side++) {
			struct end end;
			uint64_t before =
				tls_counters_read_failures((enum filter_side)side, TLS_NOT_TLS);
			end_open(&end, conf, (enum filter_side)side, "server.example");
			evbuffer_add(end.flows[FILTER_IN].src, cases[i].text,
				     strlen(cases[i].text));
			end_step(&end);
			assert_refused(&end, side ? "the peer does not speak TLS" : cases[i].words);
			assert_int_equal(
				tls_counters_read_failures((enum filter_side)side, TLS_NOT_TLS),
				before + 1);
			end_close(&end);
		}
	}
	discard(conf);
}

/* What is not the peer's fault is not said to be. */
static void
test_own_failures(void **unused)
{
	static const struct {
		int libraries[2], reasons[2];
		enum failure_kind kind;
		const char *words;
	} cases[] = {
		{ { ERR_LIB_EVP, ERR_LIB_SSL },
		  { ERR_R_MALLOC_FAILURE, ERR_R_EVP_LIB },
		  FAILURE_MEMORY,
		  "no memory for TLS" },
		{ { ERR_LIB_SSL, ERR_LIB_ASN1 },
		  { SSL_R_BAD_LENGTH, ERR_R_MALLOC_FAILURE },
		  FAILURE_MEMORY,
		  "no memory for TLS" },
		{ { ERR_LIB_SSL, ERR_LIB_SSL },
		  { ERR_R_INTERNAL_ERROR, ERR_R_INTERNAL_ERROR },
		  FAILURE_SYSTEM,
		  "TLS fails here: internal error" },
		{ { ERR_LIB_SSL, ERR_LIB_SSL },
		  { SSL_R_BAD_LENGTH, SSL_R_BAD_EXTENSION },
		  FAILURE_PROTOCOL,
		  "the peer breaks the rules of TLS: bad extension" },
	};
	(void)unused;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct failure why;
		for (int j = 0; j < 2; j++)
			ERR_raise(cases[i].libraries[j], cases[i].reasons[j]);
		tls_words_failure(&why, TLS_STAGE_OTHER);
		assert_string_equal(why.text, cases[i].words);
		assert_int_equal(why.kind, cases[i].kind);
		assert_int_equal(ERR_peek_error(), 0);
	}
}

/* --- Behind the handshake ----------------------------------------------------------------------- */

static void
update_key(struct plain *plain)
{
	assert_true(SSL_key_update(plain->ssl, SSL_KEY_UPDATE_REQUESTED));
	SSL_do_handshake(plain->ssl);
}

/* One at a time, as often as it likes, but for more than 64 in a minute. */
static void
test_key_updates(void **unused)
{
	(void)unused;
	struct tls_conf *near = SECTION({ "certificate", "server.pem" });
	struct end end;
	struct plain plain;
	begin_both(&end, &plain, near);
	talk_plain(&end, &plain);
	for (int minute = 0; minute < 3; minute++) {
		for (int i = 0; i < 64; i++) {
			update_key(&plain);
			talk_plain(&end, &plain);
			assert_talks(&end, &plain);
		}
		skipped_s += 60;
	}
	for (int i = 0; i < 64; i++)
		update_key(&plain);
	assert_talks(&end, &plain);
	skipped_s += 50;
	update_key(&plain);
	talk_plain(&end, &plain);
	assert_refused(&end,
		       "the peer sends KeyUpdates without end: more than 64 times in a minute");
	end_close(&end);
	plain_close(&plain);
	discard(near);
}

/* All of them in one go, in front of something else. */
static void
test_flood_of_key_updates(void **unused)
{
	(void)unused;
	struct tls_conf *near = SECTION({ "certificate", "server.pem" });
	struct end end;
	struct plain plain;
	begin_both(&end, &plain, near);
	talk_plain(&end, &plain);
	for (int i = 0; i < 10000; i++)
		update_key(&plain);
	SSL_write(plain.ssl, "unheard", 7);
	talk_plain(&end, &plain);
	assert_refused(&end, "the peer sends KeyUpdates without end");
	end_close(&end);
	plain_close(&plain);
	discard(near);
}

/* With no room for what KeyUpdates ask for, what waits stays bounded. */
static void
test_key_updates_without_room(void **unused)
{
	(void)unused;
	struct tls_conf *near = SECTION({ "certificate", "server.pem" });
	struct end end;
	struct plain plain;
	char bytes[4096];
	begin_both(&end, &plain, near);
	talk_plain(&end, &plain);
	for (int i = 0; i < 5000 && !end.has_failed; i++) {
		int length;
		skipped_s++;
		update_key(&plain);
		while ((length = BIO_read(plain.out, bytes, sizeof(bytes))) > 0)
			evbuffer_add(end.flows[FILTER_IN].src, bytes, (size_t)length);
		end.flows[FILTER_IN].room_bytes = 1 << 20;
		end.flows[FILTER_OUT].room_bytes = 0;
		end.has_failed = stack_step(end.stack, end.flows, &end.why) == STACK_FAILED;
		assert_true(stack_kept_bytes(end.stack) <= FILTER_KEPT_BYTES);
	}
	assert_true(stack_kept_bytes(end.stack) > FILTER_KEPT_BYTES / 2);
	talk_plain(&end, &plain); /* with room all goes on, or is over for good */
	end_close(&end);
	plain_close(&plain);
	discard(near);
}

/* Nobody hears an answer to a KeyUpdate behind our end: they do not wait, nor hold up what still comes. */
static void
test_key_updates_behind_our_end(void **unused)
{
	(void)unused;
	struct tls_conf *near = SECTION({ "certificate", "server.pem" });
	struct end end;
	struct plain plain;
	begin_both(&end, &plain, near);
	assert_talks(&end, &plain);
	end_finish(&end);
	talk_plain(&end, &plain);
	assert_true(plain.has_ended);
	for (int i = 0; i < 5000; i++) {
		skipped_s++;
		update_key(&plain);
		carry_to_end(&plain, &end);
		end_step(&end);
		assert_int_equal(stack_kept_bytes(end.stack), 0);
	}
	assert_int_equal(SSL_write(plain.ssl, "tail", 4), 4);
	carry_to_end(&plain, &end);
	end_step(&end);
	assert_false(end.has_failed);
	assert_string_equal(end_heard(&end), "tail");
	end_close(&end);
	plain_close(&plain);
	discard(near);
}

#ifndef HAS_OWN_MALLOC

/* What it says it holds, of which max_memory takes notice, is not less than what is given back with it, nor
 * far more: allocators need some, too. */
static void
test_memory_at_rest(void **unused)
{
	(void)unused;
	static const char *const after[] = { "its handshake", "a message", "a KeyUpdate" };
	struct tls_conf *near = SECTION({ "certificate", "server.pem" });
	for (int i = 0; i < 3; i++) {
		struct end end;
		struct plain plain;
		begin_both(&end, &plain, near);
		if (i == 0)
			talk_plain(&end, &plain);
		else
			assert_talks(&end, &plain);
		if (i == 2) {
			update_key(&plain);
			talk_plain(&end, &plain);
		}
		assert_ready(&end);
		size_t told = stack_held_bytes(end.stack), full = mallinfo2().uordblks;
		end_close(&end);
		size_t held = full - mallinfo2().uordblks;
		print_message("a TLS connection at rest behind %s holds %zu bytes\n", after[i],
			      held);
		assert_in_range(told, held, 2 * held);
		plain_close(&plain);
	}
	discard(near);
}

#endif

static void
test_renegotiation_is_refused(void **unused)
{
	(void)unused;
	struct tls_conf *near = SECTION({ "certificate", "server.pem" }, { "max_version", "1.2" });
	struct end end;
	struct plain plain;
	begin_both(&end, &plain, near);
	assert_talks(&end, &plain);
	uint64_t full = tls_counters_read(FILTER_NEAR, TLS_FULL);
	SSL_renegotiate(plain.ssl);
	SSL_do_handshake(plain.ssl);
	talk_plain(&end, &plain);
	assert_int_equal(plain.alert, SSL_AD_NO_RENEGOTIATION);
	assert_int_equal(tls_counters_read(FILTER_NEAR, TLS_FULL), full);
	end_close(&end);
	plain_close(&plain);
	discard(near);
}

static void
test_bulk(void **unused)
{
	enum { BYTES = 3000000 };
	(void)unused;
	struct tls_conf *near = SECTION({ "certificate", "server.pem" });
	struct tls_conf *far = SECTION({ "ca", "ca.pem" });
	struct end left, right;
	end_open(&left, near, FILTER_NEAR, "");
	end_open(&right, far, FILTER_FAR, "server.example");
	talk(&left, &right);
	unsigned char *bytes = malloc(BYTES), *got = malloc(BYTES);
	for (size_t i = 0; i < BYTES; i++)
		bytes[i] = (unsigned char)(i * i >> 7);
	/* Extents of all sizes. */
	for (size_t at = 0, length = 1; at < BYTES; at += length) {
		length = length * 7 / 3 % 90000 + 1;
		if (length > BYTES - at)
			length = BYTES - at;
		evbuffer_add_reference(right.flows[FILTER_OUT].src, bytes + at, length, NULL, NULL);
	}
	end_finish(&right);
	talk(&left, &right);
	assert_int_equal(evbuffer_remove(left.flows[FILTER_IN].dst, got, BYTES), BYTES);
	assert_memory_equal(bytes, got, BYTES);
	assert_true(left.flows[FILTER_IN].ended);
	free(bytes);
	free(got);
	end_close(&left);
	end_close(&right);
	discard(near);
	discard(far);
}

/* --- What a stranger may try -------------------------------------------------------------------- */

/* An orderly end, but before anything was agreed on. */
static void
test_close_notify_in_the_handshake(void **unused)
{
	static const char close_notify[] = { 21, 3, 3, 0, 2, 1, 0 };
	(void)unused;
	struct tls_conf *conf = SECTION({ "certificate", "server.pem" }, { "ca", "ca.pem" });
	for (enum filter_side side = FILTER_NEAR; side <= FILTER_FAR; side++) {
		struct end end;
		struct plain plain;
		uint64_t before = tls_counters_read_failures(side, TLS_ENDED);
		plain_context(&plain, false, NULL);
		plain_begin(&plain, NULL);
		end_open(&end, conf, side, "server.example");
		if (side == FILTER_NEAR) {
			plain_step(&plain);
			carry_to_end(&plain, &end);
		}
		end_step(&end);
		evbuffer_add(end.flows[FILTER_IN].src, close_notify, sizeof(close_notify));
		end_step(&end);
		assert_refused(&end, "the peer ended during the TLS handshake");
		assert_int_equal(end.why.kind, FAILURE_TRUNCATED);
		assert_int_equal(tls_counters_read_failures(side, TLS_ENDED), before + 1);
		end_close(&end);
		plain_close(&plain);
	}
	discard(conf);
}

/* Also by the filters behind it, and if all of it comes at once. */
static void
test_what_comes_before_a_failure_is_given(void **unused)
{
	/* RFC 1950: a stored block of "hello", which is not the last. */
	static const char packed[] = "\x78\x01\x00\x05\x00\xfa\xffhello";
	static const int versions[] = { TLS1_2_VERSION, TLS1_3_VERSION };
	(void)unused;
	struct tls_conf *near = SECTION({ "certificate", "server.pem" });
	const struct filter_type *zlib = registry_find("zlib");
	void *line = calloc(1, zlib->conf_bytes);
	struct failure why;
	for (const struct keyword *row = zlib->keywords; row->name; row++)
		assert_int_equal(config_value_default(row, line, &why), 0);
	assert_int_equal(zlib->configure(line, &why), 0);
	for (int i = 0; i < 4; i++) {
		bool is_damaged = i / 2;
		struct chain_link links[] = { { registry_find("tls"), near }, { zlib, line } };
		struct chain chain = { links, 2 };
		struct end end = { .facts.target_host = "" };
		struct plain plain;
		char bytes[512];
		plain_context(&plain, false, NULL);
		SSL_CTX_set_max_proto_version(plain.context, versions[i % 2]);
		plain_begin(&plain, NULL);
		stack_ends_open(end.flows, FILTER_FLUSH);
		assert_int_equal(stack_open(&end.stack, &chain, FILTER_NEAR, &end.facts, &end.why),
				 0);
		talk_plain(&end, &plain);
		assert_ready(&end);
		SSL_write(plain.ssl, packed, sizeof(packed) - 1);
		if (is_damaged)
			SSL_write(plain.ssl, packed, 2);
		else
			end.flows[FILTER_IN].flush = FILTER_FINISHED;
		int length = BIO_read(plain.out, bytes, sizeof(bytes));
		bytes[length - 1] ^= (char)is_damaged;
		evbuffer_add(end.flows[FILTER_IN].src, bytes, (size_t)length);
		end_step(&end);
		assert_refused(&end, is_damaged ? "a TLS record was changed on the way"
						: "without TLS's close_notify");
		assert_string_equal(end_heard(&end), "hello");
		end_close(&end);
		plain_close(&plain);
	}
	free(line);
	discard(near);
}

/* `truncation = "eof"` is about whole records: an end within one is none. */
static void
test_lenient_truncation_is_between_records(void **unused)
{
	int length = 1;
	(void)unused;
	struct tls_conf *near = SECTION({ "certificate", "server.pem" }, { "truncation", "eof" });
	for (int cut = 0; cut <= length; cut++) {
		char bytes[256];
		struct end end;
		struct plain plain;
		begin_both(&end, &plain, near);
		assert_talks(&end, &plain);
		SSL_write(plain.ssl, "tail", 4);
		length = BIO_read(plain.out, bytes, sizeof(bytes));
		evbuffer_add(end.flows[FILTER_IN].src, bytes, (size_t)cut);
		end_step(&end);
		end.flows[FILTER_IN].flush = FILTER_FINISHED;
		end_step(&end);
		assert_int_equal(end.has_failed, cut > 0 && cut < length);
		assert_int_equal(end.flows[FILTER_IN].ended, cut == 0 || cut == length);
		end_close(&end);
		plain_close(&plain);
	}
	discard(near);
}

/* Early data is not asked for: what a client sends all the same goes nowhere, and the rest goes on. */
static void
test_early_data_is_dropped(void **unused)
{
	size_t written;
	(void)unused;
	struct tls_conf *near = SECTION({ "certificate", "server.pem" });
	struct end end;
	struct plain plain;
	plain_context(&plain, false, NULL);
	assert_false(visit(near, &plain, NULL));
	assert_int_equal(SSL_SESSION_get_max_early_data(plain.session), 0);
	SSL_SESSION_set_max_early_data(plain.session, 4096);
	plain_begin(&plain, NULL);
	SSL_set_session(plain.ssl, plain.session);
	assert_int_equal(SSL_write_early_data(plain.ssl, "too early", 9, &written), 1);
	end_open(&end, near, FILTER_NEAR, "");
	carry_to_end(&plain, &end);
	end_step(&end);
	assert_string_equal(end_heard(&end), "");
	carry_to_plain(&end, &plain);
	SSL_do_handshake(plain.ssl);
	assert_talks(&end, &plain);
	assert_int_equal(SSL_get_early_data_status(plain.ssl), SSL_EARLY_DATA_REJECTED);
	end_close(&end);
	plain_close(&plain);
	discard(near);
}

/* A name is compared without its case and its last dot, and told so; what no name has is not told. */
static void
test_names_asked_for(void **unused)
{
	static const struct {
		const char *asked, *told, *shown;
	} cases[] = {
		{ "server.example", "server.example", "server" },
		{ "Second.EXAMPLE", "second.example", "second" },
		{ "second.example.", "second.example", "second" },
		{ ".", NULL, "server" },
		{ "a\nb", NULL, "server" },
		{ "a b", NULL, "server" },
		{ "caf\xc3\xa9.example", NULL, "server" },
		{ "192.0.2.1", "192.0.2.1", "server" },
	};
	(void)unused;
	struct paper second = paper_make((struct paper_plan){
		.name = "second", .others = "DNS:second.example", .issuer = &authority });
	paper_write("second.pem", "w", second.certificate, second.key);
	struct tls_conf *near =
		SECTION({ "certificate", "server.pem" }, { "certificate", "second.pem" });
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		expect_certificate(near, cases[i].asked, cases[i].shown, NULL, 0);
		for (int version = TLS1_2_VERSION; version <= TLS1_3_VERSION; version++) {
			struct plain plain;
			plain_context(&plain, false, NULL);
			SSL_CTX_set_max_proto_version(plain.context, version);
			/* At first, and with a session, which TLS 1.2 keeps a name with. */
			for (int again = 0; again < 2; again++) {
				struct end end;
				plain_begin(&plain, cases[i].asked);
				if (again)
					SSL_set_session(plain.ssl, plain.session);
				end_open(&end, near, FILTER_NEAR, "");
				assert_talks(&end, &plain);
				assert_int_equal(SSL_session_reused(plain.ssl), again);
				if (cases[i].told)
					assert_string_equal(end.facts.sni, cases[i].told);
				else
					assert_null(end.facts.sni);
				end_close(&end);
				plain_end(&plain);
			}
			plain_close(&plain);
		}
	}
	discard(near);
	paper_free(&second);
}

/* A server's name may be written with the dot of the root, that in a certificate is not. */
static void
test_target_with_a_dot(void **unused)
{
	(void)unused;
	struct tls_conf *far = SECTION({ "ca", "ca.pem" });
	struct tls_conf *named = SECTION({ "ca", "ca.pem" }, { "server_name", "server.example." });
	for (int i = 0; i < 2; i++) {
		struct end end;
		struct plain plain;
		plain_context(&plain, true, &server);
		plain_begin(&plain, NULL);
		end_open(&end, i ? named : far, FILTER_FAR, i ? "x" : "server.example.");
		assert_talks(&end, &plain);
		assert_string_equal(SSL_get_servername(plain.ssl, 0), "server.example");
		end_close(&end);
		plain_close(&plain);
	}
	discard(far);
	discard(named);
}

/* Who asks to renegotiate is told no, and the connection goes on; who does nothing else is disconnected. */
static void
test_renegotiation_without_end(void **unused)
{
	(void)unused;
	struct tls_conf *far = SECTION({ "ca", "ca.pem" }, { "max_version", "1.2" });
	struct end end;
	struct plain plain;
	plain_context(&plain, true, &server);
	plain_begin(&plain, NULL);
	end_open(&end, far, FILTER_FAR, "server.example");
	assert_talks(&end, &plain);
	SSL_renegotiate(plain.ssl);
	SSL_do_handshake(plain.ssl);
	carry_to_end(&plain, &end);
	end_step(&end);
	assert_ready(&end);
	for (int i = 0; i < 1000; i++) {
		SSL_renegotiate(plain.ssl);
		SSL_do_handshake(plain.ssl);
	}
	carry_to_end(&plain, &end);
	while (end_step(&end))
		;
	assert_refused(&end, "without end");
	end_close(&end);
	plain_close(&plain);
	discard(far);
}

/* --- Mistakes of the operator ------------------------------------------------------------------- */

static void
expect_mistake(const struct setting *settings, const char *words)
{
	struct tls_conf *conf;
	struct failure why = { .kind = FAILURE_NONE };
	if (!try_section(&conf, settings, &why))
		fail_msg("no mistake found; \"%s\" was expected", words);
	if (why.kind != FAILURE_CONFIG || !strstr(why.text, words))
		fail_msg("\"%s\" does not say \"%s\"", why.text, words);
	discard(conf);
}

static void
write_mistakes(void)
{
	struct paper old = paper_make((struct paper_plan){
		.name = "old", .issuer = &authority, .from_days = -60, .to_days = -2 });
	struct paper young = paper_make(
		(struct paper_plan){ .name = "young", .issuer = &authority, .from_days = 10 });
	paper_write("old.pem", "w", old.certificate, old.key);
	paper_write("young.pem", "w", young.certificate, young.key);
	paper_write("chain.pem", "w", server.certificate, server.key);
	paper_write("chain.pem", "a", other_authority.certificate, NULL);
	paper_write("bare.pem", "w", server.certificate, NULL);
	paper_write("open.pem", "w", server.certificate, NULL);
	chmod(world_path("open.pem"), 0644);
	paper_write("public.key", "w", NULL, server.key);
	chmod(world_path("public.key"), 0644);
	FILE *file = fopen(world_path("locked.key"), "w");
	PEM_write_PKCS8PrivateKey(file, server.key, EVP_aes_128_cbc(), "secret", 6, NULL, NULL);
	fclose(file);
	chmod(world_path("locked.key"), 0600);
	text_write("damaged.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
	struct paper weak = paper_make((struct paper_plan){ .name = "weak", .issuer = &authority });
	EVP_PKEY_free(weak.key);
	weak.key = EVP_RSA_gen(1024);
	X509_set_pubkey(weak.certificate, weak.key);
	X509_sign(weak.certificate, authority.key, EVP_sha256());
	paper_write("weak.pem", "w", weak.certificate, weak.key);
	paper_free(&weak);
	write_pkcs12("locked.p12", "secret", NULL, 0, &server);
	file = fopen(world_path("old.key"), "w");
	OSSL_PROVIDER *legacy = OSSL_PROVIDER_load(NULL, "legacy"),
		      *modern = OSSL_PROVIDER_load(NULL, "default");
	assert_non_null(legacy);
	write_pkcs12("old.p12", "not it", NULL, NID_pbe_WithSHA1And40BitRC2_CBC, &server);
	PEM_write_PKCS8PrivateKey_nid(file, server.key, NID_pbeWithMD5AndDES_CBC, "not it", 6, NULL,
				      NULL);
	fclose(file);
	chmod(world_path("old.key"), 0600);
	OSSL_PROVIDER_unload(legacy);
	(void)modern; /* stays */
	write_pkcs12("public.p12", "", NULL, 0, &server);
	text_write("public.psk", "a:" SECRET "\n");
	text_write("public.pass", "secret\n");
	paper_write("public.pem", "w", server.certificate, server.key);
	const char *const public[] = { "public.p12", "public.psk", "public.pass", "public.pem" };
	for (size_t i = 0; i < sizeof(public) / sizeof(public[0]); i++)
		assert_int_equal(chmod(world_path(public[i]), 0644), 0);
	text_write("short.psk", "site:abcd\n");
	text_write("odd.psk", "\n\nno colon\n");
	text_write("twice.psk", "a:" SECRET "\na:" SECRET "\n");
	text_write("wrong", "not it\n");
	paper_free(&old);
	paper_free(&young);
}

static void
test_mistakes(void **unused)
{
	(void)unused;
	write_mistakes();
	write_crl("late-crl.pem", NULL, -1);
	write_ocsp("client.der", &client, -5, 3);
	write_ocsp("late.der", &server, -5, -1);
	write_ocsp("early.der", &server, 1, 3);
	write_ocsp_that(V_OCSP_CERTSTATUS_REVOKED, "revoked.der", &server, -5, 3);
	const struct {
		struct setting settings[SETTINGS];
		const char *words;
	} cases[] = {
		{ { { "certificate", "missing.pem" } }, "missing.pem: No such file" },
		{ { { "certificate", "." } }, "is not a file" },
		{ { { "certificate", "psk" } }, "psk holds no certificate" },
		{ { { "certificate", "damaged.pem" } }, "damaged.pem holds a damaged certificate" },
		{ { { "certificate", "bare.pem" } }, "bare.pem holds no private key" },
		{ { { "certificate", "old.pem" } }, "old.pem expired 20" },
		{ { { "certificate", "young.pem" } }, "young.pem is valid only from 20" },
		{ { { "certificate", "chain.pem" } },
		  "chain.pem: certificate 2 did not issue certificate 1" },
		{ { { "certificate", "server.pem" }, { "key", "client.pem" } }, "is not that of" },
		/* That everybody may read it is nothing against a file without a secret. */
		{ { { "certificate", "open.pem" } },
		  "open.pem holds no private key; name the PEM file that does with key" },
		{ { { "certificate", "public.key" }, { "key", "open.pem" } },
		  "public.key holds no certificate but a private key; are certificate and key "
		  "exchanged?" },
		{ { { "pkcs12", "open.pem" } }, "open.pem is not a PKCS#12 file" },
		{ { { "alpn", "h2,http/1.1" } }, "alpn 'h2,http/1.1' is one name with a comma" },
		{ { { "server_name", "https://x" } }, "server_name 'https://x' is neither" },
		{ { { "server_name", "*.example" } }, "server_name '*.example' is neither" },
		{ { { "certificate", "bare.pem" }, { "key", "public.key" } },
		  "public.key holds a secret and everybody may read it; chmod 640" },
		{ { { "certificate", "bare.pem" }, { "key", "locked.key" } },
		  "locked.key is encrypted" },
		{ { { "certificate", "bare.pem" },
		    { "key", "locked.key" },
		    { "passphrase", "wrong" } },
		  "locked.key cannot be decrypted (" },
		{ { { "certificate", "bare.pem" },
		    { "key", "old.key" },
		    { "passphrase", "wrong" } },
		  "old.key cannot be decrypted (unsupported); is passphrase the right one?" },
		{ { { "certificate", "server.pem" },
		    { "certificate", "client.pem" },
		    { "key", "server.pem" } },
		  "2 files in certificate and 1 in key" },
		{ { { "key", "server.pem" } }, "key needs certificate" },
		{ { { "pkcs12", "server.pem" } }, "server.pem is not a PKCS#12 file" },
		{ { { "pkcs12", "locked.p12" } },
		  "locked.p12 is encrypted; name the file of its passphrase" },
		{ { { "pkcs12", "locked.p12" }, { "passphrase", "wrong" } },
		  "locked.p12 cannot be opened with that passphrase" },
		{ { { "pkcs12", "old.p12" }, { "passphrase", "wrong" } },
		  "old.p12 is encrypted in a way that is not supported any more" },
		{ { { "certificate", "weak.pem" } },
		  "weak.pem: the certificate cannot be used: ee key too small" },
		{ { { "certificate", "server.pem" }, { "certificate", "weak.pem" } },
		  "weak.pem: the certificate cannot be used: ee key too small" },
		{ { { "client_ca", "psk" }, { "certificate", "server.pem" } },
		  "psk holds no certificate" },
		{ { { "ca", "missing.pem" } }, "missing.pem: No such file" },
		{ { { "crl", "late-crl.pem" } }, "late-crl.pem expired 20" },
		{ { { "crl", "ca.pem" } }, "ca.pem holds no CRL" },
		{ { { "ocsp", "client.der" }, { "certificate", "server.pem" } },
		  "client.der is about none of the certificates" },
		{ { { "ocsp", "late.der" }, { "certificate", "server.pem" } },
		  "late.der expired 20" },
		{ { { "ocsp", "early.der" }, { "certificate", "server.pem" } },
		  "early.der is valid only from 20" },
		{ { { "ocsp", "revoked.der" }, { "certificate", "server.pem" } },
		  "revoked.der says that the certificate is revoked" },
		{ { { "pkcs12", "public.p12" } },
		  "public.p12 holds a secret and everybody may read it; chmod 640" },
		{ { { "psk", "public.psk" } },
		  "public.psk holds a secret and everybody may read it; chmod 640" },
		{ { { "certificate", "public.pem" } },
		  "public.pem holds a secret and everybody may read it; chmod 640" },
		{ { { "certificate", "bare.pem" },
		    { "key", "locked.key" },
		    { "passphrase", "public.pass" } },
		  "public.pass holds a secret and everybody may read it; chmod 640" },
		{ { { "psk", "short.psk" } }, "short.psk: line 1 holds no key" },
		{ { { "psk", "odd.psk" } }, "odd.psk: line 3 is not IDENTITY:HEX" },
		{ { { "psk", "twice.psk" } }, "twice.psk: line 2 repeats an identity" },
		{ { { "psk", "psk" }, { "psk_identity", "site-z" } }, "has no identity 'site-z'" },
		{ { { "psk_identity", "site-z" } }, "psk_identity needs psk" },
		{ { { "allow", "client" } }, "'client' allows nobody" },
		{ { { "allow", "ip:here" } }, "is not ip:" },
		{ { { "allow", "cn:x" }, { "verify", "none" } }, "allow says nothing" },
		{ { { "pin", "sha256/abc" } }, "is not the digest of a public key" },
		{ { { "min_version", "1.3" }, { "max_version", "1.2" } },
		  "min_version is above max_version" },
		{ { { "ciphers", "NONSENSE" } }, "names no cipher" },
		{ { { "ciphersuites", "NONSENSE" } }, "are not ciphersuites" },
		{ { { "groups", "NONSENSE" } }, "are not groups" },
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		expect_mistake(cases[i].settings, cases[i].words);
}

static int questions;

static int
on_question(UI *ui)
{
	(void)ui;
	questions++;
	return 0;
}

/* Nobody sits at the terminal of a daemon. */
static void
test_nobody_is_asked(void **unused)
{
	static const char *const kinds[] = { "CERTIFICATE", "X509 CRL", "EC PRIVATE KEY" };
	(void)unused;
	UI_METHOD *method = UI_create_method("counts");
	UI_method_set_opener(method, on_question);
	UI_set_default_method(method);
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		char text[512];
		snprintf(text, sizeof(text),
			 "-----BEGIN %s-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: "
			 "AES-128-CBC,00112233445566778899AABBCCDDEEFF\n\n"
			 "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n-----END %s-----\n",
			 kinds[i], kinds[i]);
		text_write("asks.pem", text);
		const struct setting *settings[] = {
			LIST({ "certificate", "asks.pem" }),
			LIST({ "certificate", "bare.pem" }, { "key", "asks.pem" }),
			LIST({ "certificate", "server.pem" }, { "client_ca", "asks.pem" }),
			LIST({ "ca", "asks.pem" }),
			LIST({ "ca", "ca.pem" }, { "crl", "asks.pem" }),
		};
		for (size_t j = 0; j < sizeof(settings) / sizeof(settings[0]); j++)
			expect_mistake(settings[j], "asks.pem");
	}
	assert_int_equal(questions, 0);
	UI_set_default_method(UI_OpenSSL());
	UI_destroy_method(method);
}

static void
expect_unfit(const struct setting *settings, enum filter_side side, const char *words)
{
	struct tls_conf *conf = section(settings);
	struct failure why;
	assert_int_equal(tls_conf_fits(conf, side, &why), -1);
	if (!strstr(why.text, words))
		fail_msg("\"%s\" does not say \"%s\"", why.text, words);
	discard(conf);
}

static void
test_fits(void **unused)
{
	(void)unused;
	expect_unfit(LIST({ "ca", "ca.pem" }), FILTER_NEAR, "needs certificate, pkcs12 or psk");
	expect_unfit(LIST({ "certificate", "server.pem" }, { "verify", "required" }), FILTER_NEAR,
		     "without client_ca");
	expect_unfit(LIST({ "certificate", "server.pem" }, { "allow", "cn:x" }), FILTER_NEAR,
		     "without client_ca");
	expect_unfit(LIST({ "certificate", "server.pem" }, { "client_ca", "ca.pem" },
			  { "verify", "none" }),
		     FILTER_NEAR, "client_ca is not used");
	expect_unfit(LIST({ "certificate", "server.pem" }, { "psk", "psk" }), FILTER_NEAR,
		     "psk keeps nobody out");
	expect_unfit(LIST({ "verify", "optional" }), FILTER_FAR, "\"required\" or \"none\"");
	setenv("SSL_CERT_FILE", "/nonexistent", 1);
	setenv("SSL_CERT_DIR", "/nonexistent", 1);
	expect_unfit(LIST({ "verify", "required" }), FILTER_FAR, "the system trusts no authority");
	unsetenv("SSL_CERT_FILE");
	unsetenv("SSL_CERT_DIR");
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_versions),
		cmocka_unit_test(test_old_versions_are_refused),
		cmocka_unit_test(test_ciphers_and_groups),
		cmocka_unit_test(test_other_ciphers_and_groups_are_refused),
		cmocka_unit_test(test_certificate_by_name),
		cmocka_unit_test(test_pkcs12),
		cmocka_unit_test(test_pkcs12_with_chain),
		cmocka_unit_test(test_alpn),
		cmocka_unit_test(test_client_certificates),
		cmocka_unit_test(test_anonymous_ciphers),
		cmocka_unit_test(test_strangers_names),
		cmocka_unit_test(test_allow),
		cmocka_unit_test(test_allow_looks_at_all_names),
		cmocka_unit_test(test_long_chains),
		cmocka_unit_test(test_allow_and_zero_bytes),
		cmocka_unit_test(test_revocation),
		cmocka_unit_test(test_revocation_below_the_root),
		cmocka_unit_test(test_revocation_of_each_in_the_chain),
		cmocka_unit_test(test_server_is_verified),
		cmocka_unit_test(test_absolute_names),
		cmocka_unit_test(test_no_name_to_check),
		cmocka_unit_test(test_pins),
		cmocka_unit_test(test_own_certificate),
		cmocka_unit_test(test_ocsp),
		cmocka_unit_test(test_psk),
		cmocka_unit_test(test_tickets),
		cmocka_unit_test(test_no_sessions_at_all),
		cmocka_unit_test(test_ticket_waits_for_data),
		cmocka_unit_test(test_sessions_across_reloads),
		cmocka_unit_test(test_so_many_sessions_are_kept),
		cmocka_unit_test(test_ticket_keys_rotate),
		cmocka_unit_test(test_tickets_of_old_keys),
		cmocka_unit_test(test_sessions_of_servers),
		cmocka_unit_test(test_psk_tickets),
		cmocka_unit_test(test_rules_are_asked_again),
		cmocka_unit_test(test_psk_of_a_server_that_changes),
		cmocka_unit_test(test_session_whose_certificate_has_expired),
		cmocka_unit_test(test_session_and_the_system_s_authorities),
		cmocka_unit_test(test_sessions_and_ciphers),
		cmocka_unit_test(test_crl_that_expires_meanwhile),
		cmocka_unit_test(test_psk_tickets_of_servers),
		cmocka_unit_test(test_half_close),
		cmocka_unit_test(test_truncation),
		cmocka_unit_test(test_other_protocols),
		cmocka_unit_test(test_own_failures),
		cmocka_unit_test(test_key_updates),
		cmocka_unit_test(test_flood_of_key_updates),
		cmocka_unit_test(test_key_updates_without_room),
		cmocka_unit_test(test_key_updates_behind_our_end),
#ifndef HAS_OWN_MALLOC
		cmocka_unit_test(test_memory_at_rest),
#endif
		cmocka_unit_test(test_renegotiation_is_refused),
		cmocka_unit_test(test_bulk),
		cmocka_unit_test(test_close_notify_in_the_handshake),
		cmocka_unit_test(test_what_comes_before_a_failure_is_given),
		cmocka_unit_test(test_lenient_truncation_is_between_records),
		cmocka_unit_test(test_early_data_is_dropped),
		cmocka_unit_test(test_names_asked_for),
		cmocka_unit_test(test_target_with_a_dot),
		cmocka_unit_test(test_renegotiation_without_end),
		cmocka_unit_test(test_mistakes),
		cmocka_unit_test(test_nobody_is_asked),
		cmocka_unit_test(test_fits),
	};
	return cmocka_run_group_tests_name("tls", tests, make_papers, free_papers);
}
