"""Certificates for tests, made by openssl: a CA of one's own, and who it vouches for."""

import datetime

from programs import run

KEYS = {"ec": ("ec", "-pkeyopt", "ec_paramgen_curve:P-256"), "rsa": ("rsa:2048",)}


class Authority:
    def __init__(self, directory, name="test CA"):
        self.directory = directory
        self.name = name.replace(" ", "-")
        self.certificate = directory / f"{self.name}.pem"
        self._key = directory / f"{self.name}.key"
        self._entries = []
        run("openssl", "req", "-x509", "-newkey", *KEYS["ec"], "-nodes", "-days", "30",
            "-subj", f"/CN={name}", "-keyout", self._key, "-out", self.certificate)

    def issue(self, name, *names, file=None, unit=None, days=30, age=0, key="ec"):
        """Certificate and key of that common name, valid for the names given (or for it alone); a name may be
        "URI:..." or "IP:...". It is `age` days old and valid for `days` more; negative: it has expired so long ago."""
        file = file or name.replace("*", "_")
        keyfile, request, certificate = (self.directory / f"{file}.{end}" for end in ("key", "csr", "pem"))
        extensions = certificate.with_suffix(".ext")
        others = [other if other.startswith(("URI:", "IP:")) else f"DNS:{other}" for other in names or (name,)]
        extensions.write_text("subjectAltName=" + ",".join(others) + "\n")
        subject = (f"/OU={unit}" if unit else "") + f"/CN={name}"
        run("openssl", "req", "-newkey", *KEYS[key], "-nodes", "-subj", subject, "-keyout", keyfile, "-out", request)
        dates = ["-days", str(days)]
        if days < 0 or age:
            # x509 takes no date, so the request is signed as of back then by the `ca` command.
            return self._issue_old(request, extensions, certificate, age or 10 - days, days), keyfile
        run("openssl", "x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial",
            *dates, "-extfile", extensions, "-out", certificate)
        return certificate, keyfile

    def _configuration(self):
        """For `openssl ca`, with an index of what is known."""
        index, file = self.directory / f"{self.name}.index", self.directory / f"{self.name}.cnf"
        index.write_text("".join(self._entries))
        file.write_text("[ca]\ndefault_ca=own\n[own]\n"
                        f"database={index}\nnew_certs_dir={self.directory}\nrand_serial=yes\n"
                        f"certificate={self.certificate}\nprivate_key={self._key}\n"
                        "default_md=sha256\ndefault_crl_days=7\npolicy=any\nunique_subject=no\n"
                        "[any]\norganizationalUnitName=optional\ncommonName=supplied\n")
        return file

    def _issue_old(self, request, extensions, certificate, age, days):
        now = datetime.datetime.now(datetime.timezone.utc)
        begin, end = (f"{now + datetime.timedelta(days=shift):%Y%m%d%H%M%SZ}" for shift in (-age, days))
        run("openssl", "ca", "-batch", "-notext", "-config", self._configuration(), "-in", request,
            "-extfile", extensions, "-startdate", begin, "-enddate", end, "-out", certificate)
        return certificate

    def _entry(self, certificate, state):
        serial = run("openssl", "x509", "-in", certificate, "-noout", "-serial").decode().strip().partition("=")[2]
        return f"{state}\t350101000000Z\t{'260101000000Z' if state == 'R' else ''}\t{serial}\tunknown\t/CN=x\n"

    def revoke(self, *certificates, file="crl.pem"):
        """A CRL with these and no others."""
        self._entries = [self._entry(certificate, "R") for certificate in certificates]
        out = self.directory / file
        run("openssl", "ca", "-gencrl", "-config", self._configuration(), "-out", out)
        return out

    def answer(self, certificate, file, days=7):
        """The OCSP answer that the certificate is good."""
        index, out = self.directory / f"{self.name}.index", self.directory / file
        index.write_text(self._entry(certificate, "V"))
        run("openssl", "ocsp", "-index", index, "-rsigner", self.certificate, "-rkey", self._key, "-CA",
            self.certificate, "-issuer", self.certificate, "-cert", certificate, "-ndays", str(days), "-respout", out)
        return out

    def bundle(self, name, *names, **options):
        """Certificate and key in one file."""
        certificate, key = self.issue(name, *names, **options)
        both = certificate.with_suffix(".both.pem")
        both.write_text(certificate.read_text() + key.read_text())
        both.chmod(0o600)
        return both

    def pack(self, certificate, key, passphrase):
        """The two as PKCS#12."""
        out = certificate.with_suffix(".p12")
        run("openssl", "pkcs12", "-export", "-in", certificate, "-inkey", key, "-out", out,
            "-passout", f"pass:{passphrase}")
        out.chmod(0o600)
        return out


def files_for_examples(directory):
    """What the manual's and the samples' sections of TLS name."""
    authority = Authority(directory, "ca")
    edge, key = authority.issue("edge", "cache.example")
    authority.issue("edge-rsa", "cache.example", key="rsa")
    authority.issue("other", "other.example")
    authority.revoke()
    authority.answer(edge, "edge.ocsp")
    authority.pack(edge, key, "open sesame")
    for name, text in (("passphrase", "open sesame\n"), ("secrets", f"site-a:{'0123' * 8}\nsite-b:{'4567' * 8}\n")):
        (directory / name).write_text(text)
        (directory / name).chmod(0o600)
