"""Certificates for tests, made by openssl: a CA of one's own, and who it vouches for."""

from programs import run


class Authority:
    def __init__(self, directory):
        self.directory = directory
        self.certificate = directory / "ca.pem"
        self._key = directory / "ca.key"
        run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
            "-subj", "/CN=test CA", "-keyout", self._key, "-out", self.certificate)

    def issue(self, name, *names):
        """Certificate and key of that common name, valid for the names given (or for it alone)."""
        key, request, certificate = (self.directory / f"{name.replace('*', '_')}.{end}" for end in ("key", "csr", "pem"))
        extensions = certificate.with_suffix(".ext")
        extensions.write_text("subjectAltName=" + ",".join(f"DNS:{other}" for other in names or (name,)) + "\n")
        run("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
            "-keyout", key, "-out", request)
        run("openssl", "x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key, "-CAcreateserial",
            "-days", "30", "-extfile", extensions, "-out", certificate)
        return certificate, key

    def bundle(self, name, *names):
        """Certificate and key in one file."""
        certificate, key = self.issue(name, *names)
        both = self.directory / f"{name.replace('*', '_')}.both.pem"
        both.write_text(certificate.read_text() + key.read_text())
        both.chmod(0o600)
        return both
